"""Labelled grids of pictures: rows and columns with names, a title, and the settings inside the
file.

    sheet = contact_sheet(images, rows=["front", "left"], columns=["render", "normal"],
    title=prompt) save_png(path, sheet, settings)
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from studio.errors import ConfigError

__all__ = ["contact_sheet", "shown_at", "view_names"]

INK, FAINT, PAPER, FRAME = (28, 30, 36), (108, 113, 125), (250, 250, 251), (226, 228, 233)
MARGIN, GAP = 20, 8
TITLE_SIZE, LABEL_SIZE = 20, 13


def contact_sheet(
    images: Sequence[Sequence[Float[Tensor, "h w 3"]]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    subtitle: str = "",
) -> Float[Tensor, "height width 3"]:
    """Lay out a grid.

    Args:
        images: rows of images in 0..1, all of one size.
        rows: a name for each row; empty names take no space.
        columns: a name for each column, wrapped at the width of an image.
        title: a headline, wrapped at the sheet's width.
        subtitle: smaller text below it.

    Raises:
        ConfigError: the grid is empty or ragged, sizes differ, or the names do not fit it.
    """
    height, width = _common_size(images, rows, columns)
    layout = _lay_out((width, height), rows, columns, title, subtitle)
    sheet = Image.new("RGB", layout.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for text in layout.texts:
        draw.text(text.at, text.words, text.colour, _font(text.size), anchor=text.anchor)
    for row, line in enumerate(images):
        for column, image in enumerate(line):
            left = layout.left + column * (width + GAP)
            top = layout.top + row * (height + GAP)
            draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FRAME)
            sheet.paste(Image.fromarray(_pixels(image)), (left, top))
    return torch.from_numpy(np.array(sheet, dtype=np.float32) / 255.0)


def shown_at(images: Float[Tensor, "b h w 3"], size: int) -> list[Float[Tensor, "height width 3"]]:
    """Images whose longer side has the size of a sheet: small ones with their pixels visible."""
    pixels = images.movedim(-1, 1)
    longer = max(pixels.shape[-2:])
    target = tuple(round(side * size / longer) for side in pixels.shape[-2:])
    if longer <= size:
        pixels = F.interpolate(pixels, target, mode="nearest")
    else:
        pixels = F.interpolate(pixels, target, mode="bilinear", antialias=True)
    return list(torch.unbind(pixels.movedim(1, -1)))


def view_names(azimuth_deg: Float[Tensor, " b"]) -> list[str]:
    """Names of views by azimuth: front, left, back, right, or the angle."""
    names = {0: "front", 90: "left", 180: "back", 270: "right"}
    angles = [round(float(angle)) % 360 for angle in azimuth_deg]
    return [names.get(angle, f"{angle}°") for angle in angles]


@dataclass(frozen=True)
class _Text:
    """A piece of text on the sheet."""

    at: tuple[int, int]
    words: str
    size: int
    colour: tuple[int, int, int]
    anchor: str


@dataclass(frozen=True)
class _Layout:
    """Where everything stands, in pixels."""

    size: tuple[int, int]
    left: int
    top: int
    texts: list[_Text]


def _lay_out(
    cell: tuple[int, int], rows: Sequence[str], columns: Sequence[str], title: str, subtitle: str
) -> _Layout:
    """From left to right, then from top to bottom: the title wraps at the width of the grid."""
    width, height = cell
    longest = max((_text_width(name, LABEL_SIZE) for name in rows), default=0)
    left = MARGIN + (longest + GAP if longest else 0)
    full_width = left + len(columns) * (width + GAP) - GAP + MARGIN
    texts, top = [], MARGIN
    for line in _wrap(title, full_width - 2 * MARGIN, TITLE_SIZE):
        texts.append(_Text((MARGIN, top), line, TITLE_SIZE, INK, "la"))
        top += TITLE_SIZE + 6
    for line in _wrap(subtitle, full_width - 2 * MARGIN, LABEL_SIZE):
        texts.append(_Text((MARGIN, top), line, LABEL_SIZE, FAINT, "la"))
        top += LABEL_SIZE + 4
    top += 6 if subtitle else 0
    names = [_wrap(name, width, LABEL_SIZE) for name in columns]
    lines = max(map(len, names), default=0)
    for column, name in enumerate(names):
        middle = left + column * (width + GAP) + width // 2
        # The last line stands over the image, whatever the others need.
        for place, line in enumerate(name, start=lines - len(name)):
            below = top + place * (LABEL_SIZE + 3)
            texts.append(_Text((middle, below), line, LABEL_SIZE, FAINT, "ma"))
    top += lines * (LABEL_SIZE + 3) + 5 if lines else 0
    for row, name in enumerate(rows):
        middle = top + row * (height + GAP) + height // 2
        texts.append(_Text((left - GAP, middle), name, LABEL_SIZE, FAINT, "rm"))
    full_height = top + len(rows) * (height + GAP) - GAP + MARGIN
    return _Layout((full_width, full_height), left, top, texts)


def _common_size(
    images: Sequence[Sequence[Tensor]], rows: Sequence[str], columns: Sequence[str]
) -> tuple[int, int]:
    """Height and width that all images share."""
    if not images or not images[0]:
        raise ConfigError("contact sheet: there are no images - expected at least one.")
    counts = [len(line) for line in images]
    if len(images) != len(rows) or set(counts) != {len(columns)}:
        raise ConfigError(
            f"contact sheet: got rows of {counts} images for {len(rows)} row names and "
            f"{len(columns)} column names - expected one image for each pair."
        )
    sizes = {tuple(image.shape[:2]) for line in images for image in line}
    if len(sizes) != 1:
        raise ConfigError(f"contact sheet: images have sizes {sorted(sizes)} - expected one size.")
    return sizes.pop()


def _pixels(image: Float[Tensor, "h w 3"]) -> np.ndarray:
    """An image as bytes."""
    return (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow, so that sheets look alike on every machine."""
    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    """Width of a line in pixels."""
    return round(_font(size).getlength(text)) if text else 0


def _wrap(text: str, width: int, size: int) -> list[str]:
    """Break text into at most three lines of about ``width`` pixels."""
    if not text:
        return []
    mean_glyph = max(_text_width(text, size) / len(text), 1.0)
    letters = max(8, int(width / mean_glyph))
    return textwrap.wrap(text, letters, max_lines=3, placeholder=" …")
