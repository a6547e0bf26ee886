"""The perceiver resampler of IP-Adapter-plus (arXiv 2308.06721) and its relatives.

A few latents read many image tokens. In each layer, with x the image tokens and l the latents,

    l <- l + W_o softmax(q k^T / sqrt(d)) v,   q = W_q LN2(l),   [k; v] = W_kv [LN1(x); LN2(l)]
    l <- l + FFN(l)

No matrix has a bias but those at the entrance and the exit. Parameters have the names of the public
checkpoints (``layers.0.0.to_kv.weight``), which load strictly.

    resampler = PerceiverResampler(PerceiverSettings(image_width=1280, width=768, text_width=768))
    tokens = resampler(clip.hidden(images))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.attention_processor import attend, split_heads

__all__ = [
    "Perceiver",
    "PerceiverAttention",
    "PerceiverResampler",
    "PerceiverSettings",
    "draw_weights",
    "feed_forward",
]


@dataclass(frozen=True)
class PerceiverSettings:
    """Sizes of a perceiver."""

    image_width: int
    """Channels of the image tokens."""
    width: int
    """Channels inside."""
    text_width: int
    """Channels of the result."""
    depth: int = 4
    """Layers."""
    heads: int = 12
    """Attention heads: 12 for Stable Diffusion 1.x, 20 for SDXL."""
    head_width: int = 64
    """Channels of a head."""
    tokens: int = 16
    """Latents that a resampler owns."""


class PerceiverAttention(nn.Module):
    """Latents look at image tokens and at themselves."""

    def __init__(self, width: int, *, heads: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads, inner = heads, heads * head_width
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(
        self, x: Float[Tensor, "b n width"], latents: Float[Tensor, "b k width"]
    ) -> Float[Tensor, "b k width"]:
        """What is added to the latents."""
        latents = self.norm2(latents)
        key, value = self.to_kv(torch.cat([self.norm1(x), latents], dim=1)).chunk(2, dim=-1)
        parts = (split_heads(part, self.heads) for part in (self.to_q(latents), key, value))
        return self.to_out(attend(*parts))


def feed_forward(width: int, *, mult: int = 4) -> nn.Sequential:
    """Two layers without bias behind a normalisation."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, mult * width, bias=False),
        nn.GELU(),
        nn.Linear(mult * width, width, bias=False),
    )


class Perceiver(nn.Module):
    """Latents that come from outside read image tokens."""

    def __init__(self, settings: PerceiverSettings) -> None:
        super().__init__()
        self.settings, width = settings, settings.width
        self.proj_in = nn.Linear(settings.image_width, width)
        self.proj_out = nn.Linear(width, settings.text_width)
        self.norm_out = nn.LayerNorm(settings.text_width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(width, heads=settings.heads, head_width=settings.head_width),
                    feed_forward(width),
                ]
            )
            for _ in range(settings.depth)
        )

    def refine(
        self, latents: Float[Tensor, "b k width"], x: Float[Tensor, "b n image_width"]
    ) -> Float[Tensor, "b k width"]:
        """Latents after all layers, before the way out."""
        x = self.proj_in(x)
        for attention, forward in self.layers:
            latents = latents + attention(x, latents)
            latents = latents + forward(latents)
        return latents

    def read(
        self, latents: Float[Tensor, "b k width"], x: Float[Tensor, "b n image_width"]
    ) -> Float[Tensor, "b k text_width"]:
        """What the latents make of image tokens."""
        return self.norm_out(self.proj_out(self.refine(latents, x)))

    def forward(self, latents: Tensor, x: Tensor) -> Tensor:
        """As ``read``."""
        return self.read(latents, x)


class PerceiverResampler(Perceiver):
    """A perceiver with learned latents."""

    def __init__(self, settings: PerceiverSettings) -> None:
        super().__init__(settings)
        spread = 1.0 / math.sqrt(settings.width)
        self.latents = nn.Parameter(spread * torch.randn(1, settings.tokens, settings.width))

    def forward(self, x: Float[Tensor, "b n image_width"]) -> Float[Tensor, "b k text_width"]:
        """Tokens beside the text from image tokens."""
        return self.read(self.latents.expand(len(x), -1, -1), x)


@torch.no_grad()
def draw_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Give a projector initial weights from one generator, of the sizes that PyTorch draws.

    Matrices are uniform within ``1 / sqrt(inputs)``, norms the identity, learned latents normal.
    """
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
        elif isinstance(layer, nn.Linear):
            bound = 1.0 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        elif isinstance(layer, PerceiverResampler):
            layer.latents.normal_(std=1.0 / math.sqrt(layer.settings.width), generator=generator)
