"""Pictures whose pixels are numbers of classes, not colours.

    labels = read_labels(Path("parse.png"))  # [h, w]

PNG files with a palette show colours and hold the numbers beside them; those count. Files that hold
colours alone are refused: grey levels made of them would be other numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from renderers.errors import StudioError

__all__ = ["read_labels"]

NUMBERED = ("P", "L", "I", "I;16")
"""Pillow's modes of pictures with one whole number for each pixel."""


def read_labels(path: Path) -> np.ndarray:
    """Numbers of a picture's pixels, [h, w].

    Raises:
        OSError: it cannot be read as a picture.
        StudioError: it has colours.
    """
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in NUMBERED:
            held = "colours" if len(image.getbands()) > 1 else f"pixels of mode {image.mode}"
            raise StudioError(
                f"'{path}' has {held} - expected a number for each pixel, a PNG with palette or "
                "grey. Save the labels themselves, not the picture that shows them; unpack a "
                "published data set again."
            )
        return np.array(image).astype(np.int64)
