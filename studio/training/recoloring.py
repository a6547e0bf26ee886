"""Recoloured training images, so that an autoencoder sees every colour.

A toybox has ten colours, and an autoencoder that was trained on them sees no others: it reads
magenta as grey. A renderer's first colours are any, and those of real objects are many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["RecolorConfig", "recolor", "recolor_some"]


@dataclass(frozen=True)
class RecolorConfig:
    """How images are recoloured."""

    share: float = 0.33
    """Share of a batch that is."""
    saturation: tuple[float, float] = (0.0, 1.6)
    """Range of the factor of an image's colourfulness."""
    brightness: tuple[float, float] = (0.5, 1.1)
    """Range of the factor of its brightness."""


def recolor(
    images: Float[Tensor, "b 3 h w"], config: RecolorConfig, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Images in -1..1 with their hues turned by any angle, more or less colourful and bright.

    Colours turn around the axis of greys, in RGB (Rodrigues' formula), so greys stay grey.
    """
    draws = torch.rand(len(images), 3, generator=generator).to(images)
    angle = 2.0 * math.pi * draws[:, 0]
    axis = torch.full((3,), 3.0**-0.5).to(images)
    z = 3.0**-0.5
    cross = torch.tensor([[0.0, -z, z], [z, 0.0, -z], [-z, z, 0.0]]).to(images)
    grey = torch.outer(axis, axis)
    turned = (
        torch.cos(angle)[:, None, None] * (torch.eye(3).to(images) - grey)
        + torch.sin(angle)[:, None, None] * cross
    )
    low, high = config.saturation
    dim, bright = config.brightness
    matrix = grey + (low + (high - low) * draws[:, 1])[:, None, None] * turned
    matrix = matrix * (dim + (bright - dim) * draws[:, 2])[:, None, None]
    colors = torch.einsum("bij,bjhw->bihw", matrix, images * 0.5 + 0.5)
    return colors.clamp(0.0, 1.0) * 2.0 - 1.0


def recolor_some(
    images: Float[Tensor, "b 3 h w"], config: RecolorConfig, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """The batch in its order, ``config.share`` of its images recoloured, any of them."""
    count = round(config.share * len(images))
    if not count:
        return images
    chosen = torch.randperm(len(images), generator=generator)[:count].to(images.device)
    return images.index_copy(0, chosen, recolor(images[chosen], config, generator))
