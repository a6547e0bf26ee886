"""Contact sheets of judged images, each with its own label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["comparison_cells", "comparison_sheet", "filmstrip", "judged_sheet"]

GAP = 3
COLUMN_GAP = 12
LINE_HEIGHT = 12
HEADINGS_EVERY = 8
"""Rows after which the headings of a comparison come again: it can be taller than a screen."""
GREY = 0.92
RIGHT, WRONG, BLACK = (0.15, 0.6, 0.2), (0.85, 0.15, 0.15), (0.1, 0.1, 0.1)


def filmstrip(images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "h w_n 3"]:
    """Images side by side."""
    return torch.cat(list(images), dim=1)


def judged_sheet(
    images: Sequence[Float[Tensor, "h w 3"]],
    labels: Sequence[str],
    right: Sequence[bool],
    *,
    columns: int = 12,
) -> Float[Tensor, "height width 3"]:
    """Images of one size in rows, each over its label; labels are green when right, red when not.

    A label may have several lines.

    Raises:
        ValueError: the sequences differ in length, or are empty.
    """
    if not images or not len(images) == len(labels) == len(right):
        raise ValueError(
            f"{len(images)} images, {len(labels)} labels, {len(right)} marks - expected as many "
            "of each, and at least one."
        )
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    below = LINE_HEIGHT * max(label.count("\n") + 1 for label in labels) + 1
    cell_h, cell_w = height + below + GAP, width + GAP
    sheet = torch.ones(rows * cell_h + GAP, columns * cell_w + GAP, 3)
    for k, (image, label, good) in enumerate(zip(images, labels, right)):
        top, left = GAP + k // columns * cell_h, GAP + k % columns * cell_w
        sheet[top : top + height, left : left + width] = image
        text = _text(label, (below, width), RIGHT if good else WRONG)
        sheet[top + height : top + height + below, left : left + width] = text
    return sheet


def comparison_sheet(
    cells: Sequence[Sequence[Float[Tensor, "h w 3"] | str | None]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    right: Sequence[Sequence[bool]],
) -> Float[Tensor, "height width 3"]:
    """A grid of images of one size: headings over the columns, a label over each row.

    Args:
        cells: row by row; None leaves a grey field, a word stands in a grey field.
        rows: labels.
        columns: headings.
        right: whether a bar under the image is green or red; a grey field has none.

    Raises:
        ValueError: the grid is not as large as its labels say, or holds no image.
    """
    shapes = [len(cells), *map(len, cells)], [len(right), *map(len, right)]
    images = [image for row in cells for image in row if isinstance(image, Tensor)]
    if shapes != ([len(rows)] + [len(columns)] * len(rows),) * 2 or not images:
        raise ValueError(
            f"{len(cells)} rows, {len(right)} rows of marks and {len(images)} images - expected "
            f"{len(rows)} rows of {len(columns)}, and at least one image."
        )
    height, width = images[0].shape[:2]
    headings = [GREY * _text(f" {name}", (LINE_HEIGHT + 2, width), BLACK) for name in columns]
    whole_width = len(columns) * (width + COLUMN_GAP) - COLUMN_GAP
    lines = []
    for number, (label, row, marks) in enumerate(zip(rows, cells, right)):
        if number % HEADINGS_EVERY == 0:
            lines.append(headings)
        lines.append([_text(f" {label}", (LINE_HEIGHT, whole_width), BLACK)])
        lines.append([_field(cell, (height, width)) for cell in row])
        lines.append([_bar(width, cell, good) for cell, good in zip(row, marks, strict=True)])
    gap = torch.ones(1, COLUMN_GAP, 3)
    joined = []
    for line in lines:
        spaced = [part for image in line for part in (gap.expand(len(image), -1, -1), image)][1:]
        joined.append(torch.cat(spaced, dim=1))
    return torch.nn.functional.pad(torch.cat(joined), (0, 0, GAP, GAP, GAP, GAP), value=1.0)


def comparison_cells(
    sheet: Float[Tensor, "height width 3"], *, rows: int, columns: int, size: tuple[int, int]
) -> list[list[Float[Tensor, "h w 3"]]]:
    """The fields of a sheet of :func:`comparison_sheet`, row by row; grey ones among them.

    Args:
        sheet: as it was made, or read from its file.
        rows: how many.
        columns: how many.
        size: height and width of an image.

    Raises:
        ValueError: the sheet is not of that shape.
    """
    height, width = size
    step = LINE_HEIGHT + height + GAP
    blocks = -(-rows // HEADINGS_EVERY)
    expected = (
        2 * GAP + rows * step + blocks * (LINE_HEIGHT + 2),
        2 * GAP + columns * (width + COLUMN_GAP) - COLUMN_GAP,
        3,
    )
    if tuple(sheet.shape) != expected:
        raise ValueError(
            f"the sheet is {tuple(sheet.shape)} - expected {expected}, {rows} rows and {columns} "
            f"columns of images {height} high and {width} wide."
        )
    found = []
    for row in range(rows):
        above = (row // HEADINGS_EVERY + 1) * (LINE_HEIGHT + 2)
        top = GAP + above + row * step + LINE_HEIGHT
        lefts = [GAP + column * (width + COLUMN_GAP) for column in range(columns)]
        found.append([sheet[top : top + height, left : left + width] for left in lefts])
    return found


def _field(cell: Tensor | str | None, size: tuple[int, int]) -> Float[Tensor, "h w 3"]:
    """The image, or what stands in its place."""
    if isinstance(cell, Tensor):
        return cell
    return GREY * _text(f" {cell or ''}", size, BLACK)


def _bar(width: int, cell: Tensor | str | None, good: bool) -> Float[Tensor, "h w 3"]:
    """The mark under an image."""
    color = (RIGHT if good else WRONG) if isinstance(cell, Tensor) else (1.0, 1.0, 1.0)
    return torch.tensor(color).expand(GAP, width, 3)


def _text(
    label: str, size: tuple[int, int], color: tuple[float, float, float]
) -> Float[Tensor, "h w 3"]:
    """Small text on white; what does not fit is cut off."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = size
    image = Image.new("RGB", (width, height), (255, 255, 255))
    ink, font = tuple(round(255 * c) for c in color), ImageFont.load_default(10)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(label.split("\n")):
        draw.text((0, number * LINE_HEIGHT), line, fill=ink, font=font)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
