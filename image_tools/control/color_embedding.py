"""An image embedding without weights: how much of each colour an image shows.

The global adapter of Uni-ControlNet (arXiv 2305.16322) reads CLIP's embedding of an image. Where no
such network is at hand, this one says what an adapter for colours must know, and nothing about
layout: the square roots of a histogram over a grid of colours, each pixel shared among its eight
nearest bins, so that small changes of a colour change it little. Equal lengths, by Hellinger's
distance of the histograms. Differentiable.

    prior = UniControlledPrior(prior, content=content, embedding=color_embedding(images))
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.errors import check_shape

__all__ = ["COLOR_BINS", "color_embedding"]

COLOR_BINS = (8, 8, 6)
"""Bins of red, green and blue: 384 in all, the width of the pocket prior's text."""
EPSILON = 1e-8


def color_embedding(images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b 384"]:
    """Embeddings of images in 0..1, scaled so that a number is 1 on average squared.

    Raises:
        ShapeError: if ``images`` is not [b, h, w, 3].
    """
    check_shape("images", images, "B H W 3")
    pixels = images.clamp(0.0, 1.0).flatten(1, 2)
    red, green, blue = (_shares(pixels[..., k], COLOR_BINS[k]) for k in range(3))
    histogram = torch.einsum("bpr,bpg,bpc->brgc", red, green, blue).flatten(1) / pixels.shape[1]
    return (histogram * histogram.shape[1] + EPSILON).sqrt()


def _shares(values: Float[Tensor, "b p"], bins: int) -> Float[Tensor, "b p bins"]:
    """How far each value in 0..1 belongs to each of ``bins`` evenly spaced ones; sums to 1."""
    centres = torch.linspace(0.0, 1.0, bins, device=values.device, dtype=values.dtype)
    return (1.0 - (values[..., None] - centres).abs() * (bins - 1)).clamp(min=0.0)
