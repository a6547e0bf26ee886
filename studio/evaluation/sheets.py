"""Contact sheets of judged images, each with its own label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["filmstrip", "judged_sheet"]

GAP = 3
LINE_HEIGHT = 12
RIGHT, WRONG = (0.15, 0.6, 0.2), (0.85, 0.15, 0.15)


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
