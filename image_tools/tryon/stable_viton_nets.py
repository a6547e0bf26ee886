"""The networks of StableVITON (arXiv 2312.01725, section 3.2) around a stock denoiser.

    spatial encoder   a trainable copy of the denoiser's encoder, without zero convolutions at its
                      ends; the garment's latents enter behind its first convolution through one
                      that begins at zero
    warping blocks    before decoder blocks 1.. concatenate their skip, h <- h + ZC(T(h, hint)): a
                      transformer block whose cross-attention reads the encoder's features in the
                      place of words, and a zero convolution

``WarpedUnet`` is the denoiser with both. It takes the garment's latents as its last channels, so
that each row of a call has its own and nothing is kept between calls. Blocks are stock
``Transformer2DModel`` put in by hooks for the time of a call; untrained, the prediction is the
denoiser's bit for bit.

    net = WarpedUnet(unet, SpatialEncoder.from_unet(unet), WarpBlocks(warp_widths(unet)))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.tryon.own_modules import OwnModule
from renderers.errors import check_shape

__all__ = [
    "EncoderSettings",
    "SpatialEncoder",
    "WarpBlocks",
    "WarpSettings",
    "WarpedUnet",
    "warp_widths",
]

ENCODER_PARTS = ("time_embedding", "conv_in", "down_blocks")


@dataclass(frozen=True)
class WarpSettings:
    """Sizes of the warping blocks, from the coarsest."""

    widths: tuple[int, ...]
    """Channels of the decoder's features."""
    hints: tuple[int, ...]
    """Channels of the encoder's features that they read."""
    heads: int
    """Attention heads."""
    groups: int = 32
    """Groups of their normalisation."""
    linear: bool = False
    """Whether their projections are linear layers, as in Stable Diffusion 2."""


@dataclass(frozen=True)
class EncoderSettings:
    """Sizes of the spatial encoder."""

    unet: Mapping[str, Any]
    """Settings of the denoiser that it copies."""
    garment_channels: int
    """Channels of the garment's latents."""


def warp_widths(unet: nn.Module) -> WarpSettings:
    """Sizes of warping blocks for a denoiser."""
    config = unet.config
    wide, layers = tuple(config.block_out_channels), config.layers_per_block
    skips = [wide[0]]
    for level, width in enumerate(wide):
        skips += [width] * (layers + (level < len(wide) - 1))
    rising = wide[::-1]
    widths: list[int] = []
    for level in range(1, len(rising)):
        widths += [rising[level - 1], *[rising[level]] * layers]
    # The coarsest decoder block takes the last skips and is not warped.
    hints = skips[::-1][layers + 1 :]
    heads = config.num_attention_heads or config.attention_head_dim
    return WarpSettings(
        tuple(widths), tuple(hints), heads, config.norm_num_groups, config.use_linear_projection
    )


class SpatialEncoder(OwnModule):
    """A denoiser's encoder that also sees a garment; its features are hints."""

    def __init__(self, settings: EncoderSettings) -> None:
        """An untrained encoder with random weights; see :meth:`from_unet`."""
        from diffusers import UNet2DConditionModel

        super().__init__(settings)
        stock = UNet2DConditionModel.from_config(dict(settings.unet))
        self.time_proj = stock.time_proj
        for name in ENCODER_PARTS:
            setattr(self, name, getattr(stock, name))
        width = settings.unet["block_out_channels"][0]
        self.cond_first_block = nn.Conv2d(settings.garment_channels, width, 3, padding=1)
        nn.init.zeros_(self.cond_first_block.weight)
        nn.init.zeros_(self.cond_first_block.bias)

    @classmethod
    def from_unet(cls, unet: nn.Module, garment_channels: int = 4) -> SpatialEncoder:
        """A copy of a denoiser's encoder that does not see the garment yet."""
        config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        encoder = cls(EncoderSettings(config, garment_channels))
        own = encoder.state_dict()
        encoder.load_state_dict(own | {k: t for k, t in unet.state_dict().items() if k in own})
        return encoder.train(unet.training)

    def forward(
        self,
        sample: Float[Tensor, "rows c h w"],
        t: Int[Tensor, " rows"],
        tokens: Float[Tensor, "rows length width"],
        garment: Float[Tensor, "rows k h w"],
    ) -> list[Float[Tensor, "rows d u v"]]:
        """Features after the first convolution and each block's layers, from the finest."""
        embedding = self.time_embedding(self.time_proj(t).to(sample.dtype))
        hidden = self.conv_in(sample) + self.cond_first_block(garment)
        hints = [hidden]
        for block in self.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, states = block(hidden, embedding, encoder_hidden_states=tokens)
            else:
                hidden, states = block(hidden, embedding)
            hints += states
        return hints


class WarpBlocks(OwnModule):
    """Transformer blocks and zero convolutions, from the coarsest."""

    def __init__(self, settings: WarpSettings) -> None:
        """Untrained blocks, which change nothing yet."""
        from diffusers import Transformer2DModel

        super().__init__(settings)
        pairs = list(zip(settings.widths, settings.hints, strict=True))
        self.blocks = nn.ModuleList(
            Transformer2DModel(
                num_attention_heads=settings.heads,
                attention_head_dim=width // settings.heads,
                in_channels=width,
                num_layers=1,
                cross_attention_dim=hint,
                norm_num_groups=settings.groups,
                use_linear_projection=settings.linear,
            )
            for width, hint in pairs
        )
        self.zero_convs = nn.ModuleList(nn.Conv2d(width, width, 1) for width, _ in pairs)
        for layer in (*(block.proj_out for block in self.blocks), *self.zero_convs):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def warp(
        self, number: int, hidden: Float[Tensor, "rows c h w"], hint: Float[Tensor, "rows d h w"]
    ) -> Float[Tensor, "rows c h w"]:
        """Features that have looked at a hint."""
        tokens = hint.flatten(2).transpose(1, 2)
        seen = self.blocks[number](hidden, encoder_hidden_states=tokens, return_dict=False)[0]
        return hidden + self.zero_convs[number](seen)


class WarpedUnet(nn.Module):
    """A denoiser with a spatial encoder and warping blocks; otherwise it is the denoiser."""

    def __init__(self, unet: nn.Module, encoder: SpatialEncoder, warps: WarpBlocks) -> None:
        """Put them together; the denoiser stays as it is."""
        super().__init__()
        self.unet, self.encoder, self.warps = unet, encoder, warps

    def __getattr__(self, name: str) -> Any:
        """What is asked of a denoiser beyond a call."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("unet"), name)

    @property
    def config(self) -> Any:
        """The denoiser's, with the garment's channels."""
        from diffusers.configuration_utils import FrozenDict

        own = self.unet.config
        channels = own.in_channels + self.encoder.settings.garment_channels
        return FrozenDict({**own, "in_channels": channels})

    def forward(
        self,
        sample: Float[Tensor, "rows c h w"],
        timestep: Int[Tensor, " rows"],
        encoder_hidden_states: Float[Tensor, "rows length width"],
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the denoiser's, with the garment's latents in the last channels."""
        own = self.unet.config.in_channels
        check_shape("sample", sample, f"B {self.config.in_channels} H W")
        seen, garment = sample[:, :own], sample[:, own:]
        hints = self.encoder(seen, timestep, encoder_hidden_states, garment)
        with self._warping(hints):
            return self.unet(
                seen,
                timestep,
                encoder_hidden_states=encoder_hidden_states,
                class_labels=class_labels,
                added_cond_kwargs=added_cond_kwargs,
                down_block_additional_residuals=down_block_additional_residuals,
                mid_block_additional_residual=mid_block_additional_residual,
                return_dict=return_dict,
            )

    @contextmanager
    def _warping(self, hints: Sequence[Tensor]) -> Iterator[None]:
        """Inside, the decoder's inputs look at the hints before their skips come to them."""
        resnets = [r for block in self.unet.up_blocks[1:] for r in block.resnets]
        widths = self.warps.settings.widths
        falling = hints[::-1][len(hints) - len(resnets) :]

        def put(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, skip = inputs[0][:, : widths[number]], inputs[0][:, widths[number] :]
            warped = self.warps.warp(number, hidden, falling[number])
            return (torch.cat([warped, skip], dim=1), *inputs[1:])

        with ExitStack() as stack:
            for number, resnet in enumerate(resnets):
                stack.callback(resnet.register_forward_pre_hook(partial(put, number)).remove)
            yield
