"""Contact sheets of judged images, each with its own label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["filmstrip", "judged_sheet"]

GAP = 3
LABEL_HEIGHT = 13
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
    cell_h, cell_w = height + LABEL_HEIGHT + GAP, width + GAP
    sheet = torch.ones(rows * cell_h + GAP, columns * cell_w + GAP, 3)
    for k, (image, label, good) in enumerate(zip(images, labels, right)):
        top, left = GAP + k // columns * cell_h, GAP + k % columns * cell_w
        sheet[top : top + height, left : left + width] = image
        text = _text(label, width, RIGHT if good else WRONG)
        sheet[top + height : top + height + LABEL_HEIGHT, left : left + width] = text
    return sheet


def _text(label: str, width: int, color: tuple[float, float, float]) -> Float[Tensor, "h w 3"]:
    """One line of small text on white; what does not fit is cut off."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width, LABEL_HEIGHT), (255, 255, 255))
    ink = tuple(round(255 * c) for c in color)
    ImageDraw.Draw(image).text((0, 0), label, fill=ink, font=ImageFont.load_default(10))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
