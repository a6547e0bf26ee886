"""What an image shows, by means that no prior was trained with: silhouettes, places, and the judge.

An object is what differs from the colour of the image's border. Objects side by side meet where the
image is lowest, around the places of an even division; each connected part belongs to the column
that holds most of it, and a part of several columns is split where they meet. The judge was trained
on single objects that fill the image, so an object of several is cut out, put over white and
enlarged before it is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.objects import ObjectSpec
from studio.evaluation.judge import Judge
from studio.evaluation.view_sets import foreground

__all__ = [
    "Seen",
    "byte_difference",
    "centre",
    "columns",
    "cut_out",
    "halves",
    "overlap",
    "psnr",
    "read_images",
    "read_objects",
    "silhouette",
]

MARGIN = 0.12
"""Free border of a cut-out object, as a share of its side."""
SPANNING = 0.2
"""A part with at least this share of its pixels in each of several columns is a part of them."""


@dataclass(frozen=True)
class Seen:
    """What the judge sees in one image."""

    kind: str
    color: str
    pattern: str
    patterns: dict[str, float]
    """Probability of each pattern."""

    def shows(self, spec: ObjectSpec) -> bool:
        """Whether kind and colour are those of an object."""
        return self.kind == spec.kind and self.has_color(spec)

    def has_color(self, spec: ObjectSpec) -> bool:
        """Whether the colour is that of an object."""
        return self.color == spec.color


def read_images(judge: Judge, images: Float[Tensor, "b h w 3"]) -> list[Seen]:
    """The judge's readings."""
    verdicts = judge(images)
    return [
        Seen(
            KIND_NAMES[int(kind.argmax())],
            COLOR_NAMES[int(color.argmax())],
            PATTERNS[int(pattern.argmax())],
            dict(zip(PATTERNS, pattern.tolist(), strict=True)),
        )
        for kind, color, pattern in zip(verdicts.kind, verdicts.color, verdicts.pattern)
    ]


def silhouette(image: Float[Tensor, "h w 3"]) -> Bool[Tensor, "h w"]:
    """Where an object is."""
    return foreground(image[None])[0]


def halves(image: Float[Tensor, "h w 3"]) -> tuple[Bool[Tensor, "h w"], Bool[Tensor, "h w"]]:
    """Where the left and the right object of a pair are."""
    left, right = columns(image, 2)
    return left, right


def columns(image: Float[Tensor, "h w 3"], count: int) -> tuple[Bool[Tensor, "h w"], ...]:
    """Where each of some objects side by side is, from left to right."""
    found = silhouette(image).numpy()
    width, heights = found.shape[1], found.sum(0)
    reach = width // (2 * count)
    borders = [_lowest(heights, width * k // count, reach) for k in range(1, count)]
    place = np.broadcast_to(np.searchsorted(borders, np.arange(width), side="right"), found.shape)
    masks = np.zeros((count, *found.shape), dtype=bool)
    parts, number = ndimage.label(found)
    for part in range(1, number + 1):
        own = parts == part
        shares = np.bincount(place[own], minlength=count) / own.sum()
        if (shares >= SPANNING).sum() > 1:
            for column in range(count):
                masks[column] |= own & (place == column)
        else:
            masks[shares.argmax()] |= own
    return tuple(map(torch.from_numpy, masks))


def _lowest(heights: np.ndarray, middle: int, reach: int) -> int:
    """The lowest column around one; of several, the nearest."""
    between = range(middle - reach, middle + reach)
    return min(between, key=lambda column: (heights[column], abs(column - middle)))


def cut_out(image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """An object alone, over white, in the middle of an image of the same size."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if len(rows) == 0:
        return torch.ones_like(image)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    own = torch.where(mask[..., None], image, 1.0)[top:bottom, left:right]
    side = max(bottom - top, right - left)
    side += 2 * max(1, round(MARGIN * side))
    up, west = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    canvas = torch.ones(side, side, 3)
    canvas[up : up + bottom - top, west : west + right - left] = own
    enlarged = F.interpolate(canvas.movedim(-1, 0)[None], image.shape[:2], mode="bilinear")
    return enlarged[0].movedim(0, -1)


def centre(mask: Bool[Tensor, "h w"]) -> tuple[float, float]:
    """Mean column and row of a mask in pixels; the image's own where it is empty."""
    if not mask.any():
        return mask.shape[1] / 2.0, mask.shape[0] / 2.0
    rows, columns = mask.nonzero().double().add(0.5).mean(0).tolist()
    return columns, rows


def overlap(first: Bool[Tensor, "h w"], second: Bool[Tensor, "h w"]) -> float:
    """Intersection over union; two empty masks are the same."""
    union = float((first | second).sum())
    return float((first & second).sum()) / union if union else 1.0


def byte_difference(
    first: Float[Tensor, "h w 3"], second: Float[Tensor, "h w 3"], where: Bool[Tensor, "h w"]
) -> float:
    """Mean absolute difference in 0..255 within a mask; 0 where it is empty."""
    if not where.any():
        return 0.0
    return 255.0 * float((first - second).abs()[where].mean())


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return float(-10.0 * torch.log10((first - second).square().mean().clamp(min=1e-12)))


def read_objects(
    judge: Judge, image: Float[Tensor, "h w 3"], masks: Sequence[Bool[Tensor, "h w"]]
) -> list[Seen]:
    """What each object of an image is."""
    return read_images(judge, torch.stack([cut_out(image, mask) for mask in masks]))
