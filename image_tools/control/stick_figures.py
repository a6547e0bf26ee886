"""Pictures of points and of what joins them: how conditions of poses and landmarks are drawn.

On black: a stick for each pair of points that are both seen, an ellipse from one to the other, in
its colour times a brightness; over them a disc for each point that is seen. Edges are smooth, by
the share of each pixel that is covered. Later ones lie over earlier ones.

    figure = StickFigure(((0, 1),), (RED,), (RED, BLUE), half_width=4.0, radius=4.0)
    image = draw_figures(points, figure, (512, 512), seen=seen)      # points [n, k, 2] in pixels
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.errors import ShapeError, check_shape

__all__ = ["STICK_BRIGHTNESS", "Color", "StickFigure", "draw_figures"]

STICK_BRIGHTNESS = 0.6
# Rows and columns of the grid on which edges are smoothed, at the least and at the most.
FINE, MAX_FACTOR = 2048, 8

Color = tuple[int, int, int]
"""Bytes of red, green and blue."""


@dataclass(frozen=True)
class StickFigure:
    """What is drawn of k points."""

    sticks: tuple[tuple[int, int], ...]
    """Pairs of points."""
    stick_colors: tuple[Color, ...]
    """Bytes of each stick's colour, before it is made darker."""
    point_colors: tuple[Color, ...]
    """Bytes of each point's colour."""
    half_width: float
    """Of a stick in its middle, in pixels."""
    radius: float
    """Of a point's disc, in pixels."""

    def __post_init__(self) -> None:
        """Refuse sticks without a colour."""
        if len(self.sticks) != len(self.stick_colors):
            raise ShapeError(
                f"{len(self.sticks)} sticks have {len(self.stick_colors)} colours. Give each one."
            )


def draw_figures(
    points: Float[Tensor, "n k 2"],
    figure: StickFigure,
    size: tuple[int, int],
    *,
    seen: Bool[Tensor, "n k"] | None = None,
) -> Float[Tensor, "h w 3"]:
    """All figures of one picture, in 0..1.

    Args:
        points: x and y in pixels; 0 is the picture's left or upper edge.
        figure: how each of the n figures is drawn.
        size: rows and columns.
        seen: which points are drawn, with the sticks between two that are; None for all.

    Raises:
        ShapeError: another number of points than of colours.
    """
    check_shape("points", points, f"N {len(figure.point_colors)} 2")
    image = torch.zeros(*size, 3)
    shown = torch.ones(points.shape[:2], dtype=torch.bool) if seen is None else seen
    places = points.detach().cpu().float().tolist()
    for place, is_shown in zip(places, shown.tolist(), strict=True):
        for (start, end), color in zip(figure.sticks, figure.stick_colors, strict=True):
            if is_shown[start] and is_shown[end]:
                stick = _Stick(place[start], place[end], figure.half_width)
                _paint(image, stick, color, STICK_BRIGHTNESS)
        for point, color, is_seen in zip(place, figure.point_colors, is_shown, strict=True):
            if is_seen:
                _paint(image, _Stick(point, point, figure.radius), color, 1.0)
    return image.to(points.device)


@dataclass(frozen=True)
class _Stick:
    """The ellipse from one point to another; a disc where they are the same."""

    start: list[float]
    end: list[float]
    half_width: float

    def covers(self, x: Tensor, y: Tensor) -> Bool[Tensor, "h w"]:
        """Whether places lie in it."""
        across = [self.end[0] - self.start[0], self.end[1] - self.start[1]]
        length = math.hypot(*across)
        cos, sin = (across[0] / length, across[1] / length) if length else (1.0, 0.0)
        dx, dy = x - (self.start[0] + self.end[0]) / 2.0, y - (self.start[1] + self.end[1]) / 2.0
        along, aside = cos * dx + sin * dy, cos * dy - sin * dx
        half_length = length / 2.0 or self.half_width
        return (along / half_length) ** 2 + (aside / self.half_width) ** 2 <= 1.0

    def reach(self, axis: int, length: int) -> tuple[int, int]:
        """First and last pixel along an axis, the latter left out."""
        low, high = sorted((self.start[axis], self.end[axis]))
        first = max(0, math.floor(low - self.half_width))
        return first, max(first, min(length, math.ceil(high + self.half_width)))


def _paint(image: Tensor, stick: _Stick, color: Color, brightness: float) -> None:
    """Put a shape over what is there, by the share of each pixel that it covers."""
    height, width = image.shape[:2]
    factor = max(1, min(MAX_FACTOR, FINE // max(height, width)))
    (left, right), (top, bottom) = stick.reach(0, width), stick.reach(1, height)
    columns, rows = (
        first + (torch.arange((last - first) * factor) + 0.5) / factor
        for first, last in ((left, right), (top, bottom))
    )
    inside = stick.covers(columns[None], rows[:, None])
    parts = inside.reshape(bottom - top, factor, right - left, factor)
    cover = parts.float().mean(dim=(1, 3))[..., None]
    part = image[top:bottom, left:right]
    part.copy_(torch.lerp(part, image.new_tensor(color) * (brightness / 255.0), cover))
