"""Product pictures from files, at the size of a try-on model's pictures.

garment = read_garment(GarmentConfig("shirt.jpg", "upper"), (1024, 768))
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from image_tools.personalization.photos import load_photo, orientation_of
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.tryon.garment_configs import GarmentConfig
from image_tools.tryon.pictures import fitted
from image_tools.tryon.samples import Garment

__all__ = ["picture_size", "read_garment"]

WHOLE = PhotosConfig(fit="pad")
EXCHANGED = (5, 6, 7, 8)
"""EXIF's orientations that exchange rows and columns."""


def picture_size(path: str) -> tuple[int, int]:
    """Height and width of a picture as it is seen, turned as its EXIF says.

    Raises:
        PhotosError: it cannot be read.
    """
    load_photo(path, size=1)
    with Image.open(Path(path).expanduser()) as image:
        turned = orientation_of(image) in EXCHANGED
        width, height = image.size
    return (width, height) if turned else (height, width)


def read_garment(config: GarmentConfig, size: tuple[int, int]) -> Garment:
    """A garment on white, as large as it can be and not stretched.

    Args:
        config: picture, category and words.
        size: height and width.

    Raises:
        PhotosError: the picture cannot be read.
    """
    longer, (height, width) = max(size), picture_size(config.image)
    square = load_photo(config.image, size=longer, config=WHOLE)[None]
    scale = longer / max(height, width)
    inner = (max(round(height * scale), 1), max(round(width * scale), 1))
    top, left = (longer - inner[0]) // 2, (longer - inner[1]) // 2
    image = square[:, top : top + inner[0], left : left + inner[1]]
    return Garment(fitted(image, size), (config.category,), (config.words,))
