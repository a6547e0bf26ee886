"""The distance of renders to images that they shall become: colours, and edges, at several scales.

    L = mean over scales of  sum m |r - p| / sum m  +  lambda sum m |d r - d p| / sum m

r renders, p images, m masks, d the difference to the next pixel, of which that along rows and that
along columns are averaged; each scale halves the one before. L1 settles on a median where images of
several views do not agree, and differences ask for edges as a perceptual loss would.

    loss = image_distance(renders, views, masks, scales=3, gradient_weight=1.0)
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["image_distance"]

SMALL = 1e-6


def image_distance(
    renders: Float[Tensor, "b h w 3"],
    images: Float[Tensor, "b h w 3"],
    masks: Float[Tensor, "b h w 1"],
    *,
    scales: int,
    gradient_weight: float,
) -> Float[Tensor, ""]:
    """The formula above.

    Args:
        renders: with gradient.
        images: of the same size.
        masks: weight of each pixel.
        scales: number of resolutions.
        gradient_weight: lambda.
    """
    difference, weight = (renders - images).movedim(-1, 1), masks.movedim(-1, 1)
    total = renders.new_zeros(())
    for scale in range(scales):
        if scale:
            difference, weight = F.avg_pool2d(difference, 2), F.avg_pool2d(weight, 2)
        total = total + _mean(difference.abs(), weight)
        along_rows = _mean(difference.diff(dim=3).abs(), weight[:, :, :, 1:])
        along_columns = _mean(difference.diff(dim=2).abs(), weight[:, :, 1:])
        total = total + gradient_weight * 0.5 * (along_rows + along_columns)
    return total / scales


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over pixels, plain mean over channels."""
    channels = values.shape[1]
    return (values * weight).sum() / (channels * weight.sum()).clamp(min=SMALL)
