"""Pictures of poses that try-on models read: heat maps, skeletons, body parts in colours.

    heat maps    one for each keypoint, exp(-|p - q|^2 / sigma^2) at the pixel centres p; sigma is 9
                 pixels of 512 rows (LaDI-VTON, arXiv 2305.13501)
    skeleton     limbs at 60 % of the brightness of their keypoints, whose hues are 20 degrees
                 apart: what ControlNets of poses read
    body parts   DensePose's 24 parts (arXiv 1802.00434) in the colours of its usual renderings,
                 the parula map at part / 24; the background is black

Public data sets mix those colours with the photograph in different ways. What a model reads should
look like what it was trained with.

    heat = heat_maps(sample.keypoints, sample.size)
    colors = part_colors(parts)
"""

from __future__ import annotations

import colorsys

import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.errors import ShapeError, check_shape

__all__ = ["LIMBS", "PART_COLORS", "heat_maps", "part_colors", "part_labels", "skeleton"]

SIGMA, LIMB_WIDTH, POINT_RADIUS = 9.0, 4.0, 4.0  # pixels of a picture with so many rows:
REFERENCE_ROWS = 512
LIMB_BRIGHTNESS = 0.6
HUES = 18
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11)),
    *((11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
"""Pairs of keypoints that a skeleton joins, each in the colour of the keypoint of its number."""
PART_COLORS = (
    *((53, 58, 168), (41, 76, 202), (4, 98, 224), (6, 111, 223), (16, 121, 218), (20, 132, 212)),
    *((15, 144, 210), (7, 156, 207), (6, 166, 199), (11, 173, 188), (28, 179, 176), (51, 184, 161)),
    *((79, 188, 145), (110, 191, 130), (139, 191, 117), (165, 190, 107), (189, 189, 97)),
    *((211, 187, 88), (232, 185, 79), (251, 188, 65), (254, 201, 50), (248, 215, 39)),
    *((245, 231, 27), (249, 251, 14)),
)
"""Bytes of the parts 1 to 24."""


def heat_maps(keypoints: Float[Tensor, "b k 3"], size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
    """A bump of height 1 around each keypoint; empty where it is not known.

    Args:
        keypoints: column and row as shares of width and height, and 1 where known.
        size: height and width.
    """
    squares = _squared_distances(keypoints[..., :2], size)
    sigma = SIGMA * size[0] / REFERENCE_ROWS
    bumps = (-squares / sigma**2).exp()
    highest = bumps.flatten(2).amax(dim=2)[..., None, None].clamp(min=torch.finfo(bumps.dtype).tiny)
    return bumps / highest * (keypoints[..., 2] > 0)[..., None, None]


def skeleton(keypoints: Float[Tensor, "b 18 3"], size: tuple[int, int]) -> Float[Tensor, "b h w 3"]:
    """A coloured skeleton on black, its points over its limbs."""
    check_shape("keypoints", keypoints, "B 18 3")
    scale = size[0] / REFERENCE_ROWS
    points, known = keypoints[..., :2], keypoints[..., 2] > 0
    colors = [keypoints.new_tensor(colorsys.hsv_to_rgb(k / HUES, 1.0, 1.0)) for k in range(HUES)]
    image = keypoints.new_zeros(len(keypoints), *size, 3)
    for number, (a, b) in enumerate(LIMBS):
        squares = _squared_to_segment(points[:, a], points[:, b], size)
        inside = squares <= (LIMB_WIDTH * scale / 2.0) ** 2
        inside &= (known[:, a] & known[:, b])[:, None, None]
        image = torch.where(inside[..., None], LIMB_BRIGHTNESS * colors[number], image)
    inside = _squared_distances(points, size) <= (POINT_RADIUS * scale) ** 2
    inside &= known[..., None, None]
    for number, color in enumerate(colors):
        image = torch.where(inside[:, number, ..., None], color, image)
    return image


def part_colors(parts: Int[Tensor, "b h w"]) -> Float[Tensor, "b h w 3"]:
    """DensePose's part numbers in colours.

    Raises:
        ShapeError: if numbers are not 0 to 24.
    """
    low, high = int(parts.min()), int(parts.max())
    if low < 0 or high > len(PART_COLORS):
        raise ShapeError(
            f"parts has numbers from {low} to {high} - expected 0 (background) to "
            f"{len(PART_COLORS)}. Give the part index of DensePose, not its U or V."
        )
    return _palette(parts.device)[parts.long()]


def part_labels(colors: Float[Tensor, "b h w 3"]) -> Int[Tensor, "b h w"]:
    """The inverse of :func:`part_colors`: the part whose colour is nearest."""
    distances = torch.cdist(colors.flatten(0, 2), _palette(colors.device).to(colors))
    return distances.argmin(dim=1).unflatten(0, colors.shape[:3])


def _palette(device: torch.device) -> Float[Tensor, "25 3"]:
    return torch.tensor([(0, 0, 0), *PART_COLORS], device=device) / 255.0


def _pixel_centers(size: tuple[int, int], like: Tensor) -> Float[Tensor, "h w 2"]:
    """Column and row of each pixel's centre."""
    rows, columns = (torch.arange(side, device=like.device) + 0.5 for side in size)
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(like)


def _in_pixels(points: Tensor, size: tuple[int, int]) -> Tensor:
    return points * points.new_tensor([size[1], size[0]])


def _squared_distances(
    points: Float[Tensor, "b k 2"], size: tuple[int, int]
) -> Float[Tensor, "b k h w"]:
    offsets = _pixel_centers(size, points) - _in_pixels(points, size)[:, :, None, None]
    return offsets.square().sum(dim=-1)


def _squared_to_segment(
    start: Float[Tensor, "b 2"], end: Float[Tensor, "b 2"], size: tuple[int, int]
) -> Float[Tensor, "b h w"]:
    """Squared distance of each pixel to a line from one point to another."""
    start, end = (_in_pixels(point, size)[:, None, None] for point in (start, end))
    along, offsets = end - start, _pixel_centers(size, start) - start
    length = along.square().sum(dim=-1).clamp(min=1e-8)
    share = ((offsets * along).sum(dim=-1) / length).clamp(0.0, 1.0)
    return (offsets - share[..., None] * along).square().sum(dim=-1)
