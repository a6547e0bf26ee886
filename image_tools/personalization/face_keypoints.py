"""The picture of five facial landmarks that InstantID's ControlNet follows (arXiv 2401.07519).

On black: four sticks from eyes and corners of the mouth to the nose, in the colour of their
beginning times 0.6, and on top five discs in full colour. The public weights know sticks of 4 and
discs of 10 pixels' half width in pictures of about 1024. Here both scale with the picture and
edges are smooth; ``draw_legacy_keypoints`` draws the same pixels as the authors' code (OpenCV).

    image = draw_keypoints(face.kps[None] * scale, (1024, 1024))     # [1, 1024, 1024, 3] in 0..1
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.control.stick_figures import STICK_BRIGHTNESS, StickFigure, draw_figures
from renderers.errors import check_shape

__all__ = ["KEYPOINT_COLORS", "draw_keypoints", "draw_legacy_keypoints"]

KEYPOINT_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""Of the left and the right eye, the nose, the left and the right corner of the mouth."""
STICKS = ((0, 2), (1, 2), (3, 2), (4, 2))
STICK_HALF_WIDTH, DISC_RADIUS = 4, 10
# The picture's size for which the half widths are meant.
DRAWN_FOR = 1024.0
# OpenCV's fixed point.
FRACTION_BITS = 16


def draw_keypoints(
    kps: Float[Tensor, "b 5 2"],
    size: tuple[int, int],
    *,
    seen: Bool[Tensor, "b 5"] | None = None,
) -> Float[Tensor, "b h w 3"]:
    """Pictures of landmarks, in 0..1.

    Args:
        kps: x and y in pixels of the picture; 0 is its left or upper edge.
        size: rows and columns.
        seen: which landmarks are drawn, with the sticks between two that are; None for all.
    """
    check_shape("kps", kps, "B 5 2")
    scale = max(size) / DRAWN_FOR
    figure = StickFigure(
        sticks=STICKS,
        stick_colors=tuple(KEYPOINT_COLORS[start] for start, _ in STICKS),
        point_colors=KEYPOINT_COLORS,
        half_width=STICK_HALF_WIDTH * scale,
        radius=DISC_RADIUS * scale,
    )
    shown = torch.ones(kps.shape[:2], dtype=torch.bool) if seen is None else seen
    pairs = zip(kps[:, None], shown[:, None], strict=True)
    return torch.stack([draw_figures(own, figure, size, seen=of_own) for own, of_own in pairs])


def draw_legacy_keypoints(
    kps: Float[Tensor, "5 2"], size: tuple[int, int]
) -> Float[Tensor, "h w 3"]:
    """One picture with the pixels of the authors' code, whatever its size.

    OpenCV's ``ellipse2Poly`` in whole degrees, ``fillConvexPoly`` and filled ``circle``: positions
    are cut to whole pixels, nothing is smoothed.

    Args:
        kps: x and y in pixels.
        size: rows and columns.
    """
    check_shape("kps", kps, "5 2")
    points = kps.detach().cpu().double().tolist()
    canvas = np.zeros((*size, 3), dtype=np.uint8)
    for start, end in STICKS:
        outline = _stick_outline(points[start], points[end])
        for row, left, right in _polygon_rows(outline):
            _fill(canvas, row, left, right, KEYPOINT_COLORS[start])
    canvas = (canvas * STICK_BRIGHTNESS).astype(np.uint8)
    for point, color in zip(points, KEYPOINT_COLORS, strict=True):
        for row, left, right in _disc_rows(int(point[0]), int(point[1]), DISC_RADIUS):
            _fill(canvas, row, left, right, color)
    return torch.from_numpy(canvas).float().div(255.0).to(kps.device)


def _fill(canvas: np.ndarray, row: int, left: int, right: int, color: tuple[int, int, int]) -> None:
    if 0 <= row < canvas.shape[0] and right >= 0:
        canvas[row, max(left, 0) : right + 1] = color


def _stick_outline(start: list[float], end: list[float]) -> list[tuple[int, int]]:
    """Corners of the ellipse between two points, one for each degree that moves."""
    middle = int((start[0] + end[0]) / 2.0), int((start[1] + end[1]) / 2.0)
    across = start[0] - end[0], start[1] - end[1]
    length, turn = math.hypot(*across), int(math.degrees(math.atan2(across[1], across[0])))
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    corners: list[tuple[int, int]] = []
    for degree in range(361):
        u = int(length / 2.0) * math.cos(math.radians(degree))
        v = STICK_HALF_WIDTH * math.sin(math.radians(degree))
        corner = round(middle[0] + u * cos - v * sin), round(middle[1] + u * sin + v * cos)
        if not corners or corner != corners[-1]:
            corners.append(corner)
    return corners


def _polygon_rows(corners: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Row, first and last column of a convex polygon: its edges' pixels and all between them."""
    reach: dict[int, tuple[int, int]] = {}
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        for column, row in (*_line_pixels(start, end), *_edge_columns(start, end)):
            left, right = reach.get(row, (column, column))
            reach[row] = min(left, column), max(right, column)
    yield from ((row, left, right) for row, (left, right) in reach.items())


def _edge_columns(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Where an edge crosses each row, rounded as the filling does, which differs from the line's
    pixels where the crossing lies in the middle of two."""
    (x0, y0), (x1, y1) = sorted((start, end), key=lambda corner: corner[1])
    for row in range(y0, y1):
        slope = (2 * ((x1 - x0) << FRACTION_BITS) + (y1 - y0)) / (2 * (y1 - y0))
        place = (x0 << FRACTION_BITS) + int(slope) * (row - y0)
        yield (place + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS, row


def _line_pixels(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Bresenham's line from left to right."""
    (x0, y0), (x1, y1) = sorted((start, end)) if start[0] != end[0] else (start, end)
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    step_x, step_y = (1 if x1 > x0 else -1), (1 if y1 > y0 else -1)
    is_steep = dy > dx
    longer, shorter = (dy, dx) if is_steep else (dx, dy)
    error = longer - 2 * shorter
    x, y = x0, y0
    for _ in range(longer + 1):
        yield x, y
        is_over = error < 0
        error += (2 * longer if is_over else 0) - 2 * shorter
        x += step_x if not is_steep or is_over else 0
        y += step_y if is_steep or is_over else 0


def _disc_rows(x: int, y: int, radius: int) -> Iterator[tuple[int, int, int]]:
    """Rows of a disc, by Bresenham's circle."""
    error, plus, minus = 0, 1, 2 * radius - 1
    dx, dy = radius, 0
    while dx >= dy:
        for row in (y - dy, y + dy):
            yield row, x - dx, x + dx
        for row in (y - dx, y + dx):
            yield row, x - dy, x + dy
        dy += 1
        error += plus
        plus += 2
        if error > 0:
            error -= minus
            dx -= 1
            minus -= 2
