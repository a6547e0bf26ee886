"""What a denoiser's attention and features say of an image (arXiv 2306.00986, section 3).

A is the head-mean attention of image tokens to text tokens, Psi the features of a decoder block:

    centroid   sum over places of x A / sum A                              (Eq. 3, order x, y)
    shape      S(A) = norm(sigmoid(s (norm(A) - 1/2))), s = 10              (soft threshold)
    size       mean of S(A)
    appearance sum of [norm(A) > 1/2] Psi / sum of [norm(A) > 1/2]          (mask without gradient)

with norm(A) = (A - min) / (max - min + 1e-4) for each token. All are differentiable and pure.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "appearance",
    "centroid",
    "normalized",
    "shape",
    "size",
    "thing_mask",
    "transformed",
]

EPS = 1e-4
SHARPNESS = 10.0


def normalized(maps: Float[Tensor, "... h w"]) -> Float[Tensor, "... h w"]:
    """Each map from 0 to (almost) 1; a flat map becomes 0."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    return (maps - low) / (maps.amax(dim=(-2, -1), keepdim=True) - low + EPS)


def centroid(maps: Float[Tensor, "... h w"]) -> Float[Tensor, "... 2"]:
    """Centre of attention, x from 0 at the left to 1, y from 0 at the top to 1."""
    total = maps.sum(dim=(-2, -1)) + EPS
    rows = torch.linspace(0.0, 1.0, maps.shape[-2], dtype=maps.dtype, device=maps.device)
    columns = torch.linspace(0.0, 1.0, maps.shape[-1], dtype=maps.dtype, device=maps.device)
    x = (maps.sum(dim=-2) * columns).sum(dim=-1) / total
    y = (maps.sum(dim=-1) * rows).sum(dim=-1) / total
    return torch.stack([x, y], dim=-1)


def shape(maps: Float[Tensor, "... h w"]) -> Float[Tensor, "... h w"]:
    """Where the thing is, softly, from 0 to 1."""
    return normalized(torch.sigmoid(SHARPNESS * (normalized(maps) - 0.5)))


def size(maps: Float[Tensor, "... h w"]) -> Float[Tensor, "..."]:
    """Share of the image that the thing takes."""
    return shape(maps).mean(dim=(-2, -1))


def thing_mask(maps: Float[Tensor, "... h w"]) -> Float[Tensor, "... h w"]:
    """Where the thing is, 0 or 1, without gradient."""
    return (normalized(maps.detach()) > 0.5).to(maps)


def appearance(
    maps: Float[Tensor, "k h w"], features: Float[Tensor, "c height width"]
) -> Float[Tensor, "k c"]:
    """Mean features of each thing; gradients reach the features alone."""
    masks = F.interpolate(thing_mask(maps)[None], features.shape[-2:], mode="bilinear")[0]
    total = masks.sum(dim=(-2, -1)) + EPS
    return torch.einsum("khw,chw->kc", masks.to(features), features) / total[:, None].to(features)


def transformed(
    maps: Float[Tensor, "k h w"], *, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0
) -> Float[Tensor, "k h w"]:
    """Maps moved right and down by shares of the image, and scaled around their own centroid.

    What leaves the image is lost, what enters it is 0.
    """
    centres = centroid(maps)
    height, width = maps.shape[-2:]
    rows = torch.linspace(0.0, 1.0, height, dtype=maps.dtype, device=maps.device)
    columns = torch.linspace(0.0, 1.0, width, dtype=maps.dtype, device=maps.device)
    # Each place of the result takes the value of the place that moves there.
    x = (columns - centres[:, None, 0] - shift[0]) / scale + centres[:, None, 0]
    y = (rows - centres[:, None, 1] - shift[1]) / scale + centres[:, None, 1]
    grid = torch.stack(
        [x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1
    )
    return F.grid_sample(maps[:, None], 2.0 * grid - 1.0, align_corners=True)[:, 0]
