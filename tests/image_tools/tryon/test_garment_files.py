"""Product pictures from files: turned as their EXIF says, whatever it says."""

from __future__ import annotations

import pytest
from PIL import ExifTags, Image

from image_tools.tryon.garment_files import picture_size


@pytest.mark.parametrize(
    ("orientation", "size"),
    [
        (None, (22, 32)),
        (1, (22, 32)),
        (3, (22, 32)),
        (6, (32, 22)),
        (99, (22, 32)),
    ],
)
def test_sizes_are_those_of_the_turned_picture_and_nonsense_turns_nothing(
    orientation, size, tmp_path
):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "shirt.png"
    Image.new("RGB", (32, 22), "red").save(path, exif=exif)
    assert picture_size(str(path)) == size
