"""Square cuts of a picture, turned if need be, at the size that a network takes.

frame = Frame(center_x, center_y, side, angle)        # pixels, radians
crop = cut(image, frame, size=192)
points = frame.to_picture(mesh_points / 192)          # back to pixels of the picture
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Frame", "cut", "frame_around", "windows"]

# Sides of the squares in which faces are looked for, as shares of the picture's longer side. One
# that is larger than the picture shows a face that fills it small enough; small ones show small
# faces large enough.
WHOLE, PADDED, PARTS = 1.0, (1.5, 2.2), (0.6, 0.4)
# A cut by so much is made of a picture that was reduced first, or every other pixel would count.
REDUCING = 2.0


@dataclass(frozen=True)
class Frame:
    """A square in a picture."""

    x: float
    """Its middle, in pixels from the left."""
    y: float
    """Its middle, in pixels from the top."""
    side: float
    """In pixels."""
    angle: float = 0.0
    """In radians, clockwise as seen."""

    def to_picture(self, points: Float[Tensor, "... 2"]) -> Float[Tensor, "... 2"]:
        """From shares of the square's sides to pixels of the picture."""
        offset = (points - 0.5) * self.side
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        x = self.x + cos * offset[..., 0] - sin * offset[..., 1]
        y = self.y + sin * offset[..., 0] + cos * offset[..., 1]
        return torch.stack([x, y], dim=-1)


def frame_around(
    points: Float[Tensor, "n 2"], *, eyes: Float[Tensor, "2 2"], scale: float
) -> Frame:
    """A square around points, turned so that the line from one eye to the other is level.

    Args:
        points: what it holds, in pixels.
        eyes: left and right eye of the picture.
        scale: its side as a multiple of the points' longer extent along the turned axes.
    """
    right = eyes[1] - eyes[0]
    angle = math.atan2(float(right[1]), float(right[0]))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = points.new_tensor([[cos, sin], [-sin, cos]])
    turned = points @ turn.T
    low, high = turned.amin(dim=0), turned.amax(dim=0)
    middle = turn.T @ ((low + high) / 2.0)
    side = float((high - low).max()) * scale
    return Frame(float(middle[0]), float(middle[1]), side, angle)


def cut(
    image: Float[Tensor, "h w 3"],
    frame: Frame,
    *,
    size: int,
    outside: Literal["border", "black"] = "border",
) -> Float[Tensor, "s s 3"]:
    """What a frame shows; differentiable.

    Args:
        image: the picture.
        frame: a square of it.
        size: of the result.
        outside: what is outside of the picture: its border, going on, or black.
    """
    factor = int(frame.side / size / REDUCING) + 1 if frame.side > REDUCING * size else 1
    pixels = image.movedim(-1, 0)[None]
    if factor > 1:
        pixels = F.avg_pool2d(pixels, factor, ceil_mode=True, count_include_pad=False)
    steps = (torch.arange(size, dtype=image.dtype, device=image.device) + 0.5) / size
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    places = frame.to_picture(torch.stack([columns, rows], dim=-1)) / factor
    extent = places.new_tensor([pixels.shape[-1], pixels.shape[-2]])
    grid = (2.0 * places / extent - 1.0)[None]
    padding = "zeros" if outside == "black" else "border"
    found = F.grid_sample(pixels, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return found[0].movedim(0, -1)


def windows(height: int, width: int) -> list[list[Frame]]:
    """Squares in which to look for faces: the next list only where the ones before show none."""
    middle = (width / 2.0, height / 2.0)
    longer = float(max(height, width))
    tries = [[Frame(*middle, share * longer)] for share in (WHOLE, *PADDED)]
    for share in PARTS:
        side = share * longer
        columns, rows = _places(width, side), _places(height, side)
        tries.append([Frame(x, y, side) for y in rows for x in columns])
    return tries


def _places(length: int, side: float) -> list[float]:
    """Middles of overlapping windows along an axis."""
    if side >= length:
        return [length / 2.0]
    count = math.ceil(2.0 * (length - side) / side) + 1
    return torch.linspace(side / 2.0, length - side / 2.0, count).tolist()
