"""The grounding resampler of MS-Diffusion (arXiv 2406.07209, section 3.2): images to tokens.

A perceiver whose latents know what they are to look for, and where it shall be:

    l = LN(MLP([phrase; fourier(box)])),     tokens = LN(W_out LN(perceiver(l, W_in x)))

with sines and cosines of f_k box, f_k = 100^(k/8). Where grounding is left out, the latents are
learned ones. Parameters have the names of the published file.

    tokens = resampler(clip.hidden(images), phrases, boxes, learned)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.personalization.ms_diffusion_configs import MSShape
from image_tools.personalization.perceiver import Perceiver, PerceiverSettings, draw_weights

__all__ = ["BOX_WIDTH", "HEAD_WIDTH", "GroundingResampler", "box_features"]

HEAD_WIDTH = 64
FREQUENCIES, BASE = 8, 100.0
BOX_WIDTH = FREQUENCIES * 2 * 4
"""Numbers that stand for a box."""


def box_features(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n numbers"]:
    """Boxes as waves: for each frequency the sines, then the cosines of all four bounds."""
    places = torch.arange(FREQUENCIES, device=boxes.device) / FREQUENCIES
    angles = (BASE**places).to(boxes)[:, None] * boxes[:, None]
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class GroundingResampler(Perceiver):
    """Tokens of images of subjects, one pass for each image."""

    def __init__(self, shape: MSShape) -> None:
        super().__init__(
            PerceiverSettings(
                image_width=shape.image_width,
                width=shape.dim,
                text_width=shape.text_width,
                depth=shape.depth,
                heads=shape.heads,
                head_width=HEAD_WIDTH,
                tokens=shape.tokens,
            )
        )
        given, spread = shape.phrase_width + BOX_WIDTH, 1.0 / math.sqrt(shape.dim)
        self.grounding_latents = nn.Parameter(spread * torch.randn(1, shape.tokens, shape.dim))
        self.latent_proj = nn.Sequential(
            nn.Linear(given, 2 * given), nn.GELU(), nn.Linear(2 * given, shape.tokens * shape.dim)
        )
        self.latent_norm = nn.LayerNorm(shape.dim)
        self.attention_norm = nn.LayerNorm(shape.dim)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Initial weights from one generator."""
        draw_weights(self, generator)
        spread = 1.0 / math.sqrt(self.settings.width)
        self.grounding_latents.normal_(std=spread, generator=generator)

    def latents_of(
        self,
        phrases: Float[Tensor, "n phrase_width"],
        boxes: Float[Tensor, "n 4"],
        learned: Bool[Tensor, " n"],
    ) -> Float[Tensor, "n k dim"]:
        """What the perceiver starts from."""
        grounding = self.latent_proj(torch.cat([phrases, box_features(boxes)], dim=-1))
        grounded = self.latent_norm(grounding.unflatten(-1, (self.settings.tokens, -1)))
        return torch.where(learned[:, None, None], self.grounding_latents, grounded)

    def forward(
        self,
        features: Float[Tensor, "n m image_width"],
        phrases: Float[Tensor, "n phrase_width"],
        boxes: Float[Tensor, "n 4"],
        learned: Bool[Tensor, " n"],
    ) -> Float[Tensor, "n k text_width"]:
        """Tokens.

        Args:
            features: the image encoder's tokens after its last layer but one.
            phrases: pooled embeddings of what the images show.
            boxes: [x0, y0, x1, y1] in 0..1 where that shall be.
            learned: rows that know neither phrase nor box.
        """
        latents = self.refine(self.latents_of(phrases, boxes, learned), features)
        return self.norm_out(self.proj_out(self.attention_norm(latents)))
