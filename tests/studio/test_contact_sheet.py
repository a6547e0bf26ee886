"""Contact sheets: layout, labels, and settings inside the file."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from studio.contact_sheet import contact_sheet, view_names
from studio.errors import ConfigError
from studio.previews import save_png


def cards(rows: int, columns: int, size: tuple[int, int] = (40, 60)) -> list[list[torch.Tensor]]:
    """Images whose colour tells their place."""
    return [
        [torch.tensor([row / 10, column / 10, 0.5]).expand(*size, 3) for column in range(columns)]
        for row in range(rows)
    ]


def find(sheet: torch.Tensor, colour: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the pixels of one colour."""
    hits = ((sheet - colour).abs().amax(-1) < 0.5 / 255.0).nonzero()
    (top, left), (bottom, right) = hits.amin(0).tolist(), hits.amax(0).tolist()
    return top, left, bottom + 1, right + 1


def test_every_image_is_whole_and_in_its_place():
    images = cards(3, 4)
    sheet = contact_sheet(images, rows=["a", "b", "c"], columns=list("wxyz"), title="a title")
    boxes = [[find(sheet, (image[0, 0] * 255).round() / 255) for image in row] for row in images]
    for row in boxes:
        for top, left, bottom, right in row:
            assert (bottom - top, right - left) == (40, 60)
    assert boxes[0][0][0] < boxes[1][0][0] < boxes[2][0][0]
    assert boxes[0][0][1] < boxes[0][1][1] < boxes[0][3][1]
    assert boxes[0][2][0] == boxes[0][3][0]


def test_labels_take_room_and_are_drawn():
    bare = contact_sheet(cards(2, 2), rows=["", ""], columns=["", ""])
    full = contact_sheet(
        cards(2, 2), rows=["front", "back"], columns=["render", "normal"], title="T", subtitle="s"
    )
    assert full.shape[0] > bare.shape[0]
    assert full.shape[1] > bare.shape[1]
    left_of_images = full[:, : full.shape[1] - 2 * 60 - 60]
    assert float(left_of_images.min()) < 0.6


def test_long_title_wraps_and_is_cut_after_three_lines():
    images = cards(1, 2)
    heights = [
        contact_sheet(images, rows=[""], columns=["", ""], title="word " * count).shape[0]
        for count in (1, 3, 1000, 5000)
    ]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_settings_travel_in_the_png(tmp_path):
    sheet = contact_sheet(cards(1, 1), rows=[""], columns=["x"], title="Würfel 立方体")
    save_png(tmp_path / "sheet.png", sheet, {"prompt": "Würfel 立方体", "seed": 7})
    with Image.open(tmp_path / "sheet.png") as image:
        assert json.loads(image.text["studio"]) == {"prompt": "Würfel 立方体", "seed": 7}
        assert image.text["parameters"] == "Würfel 立方体\nseed: 7"


def test_views_are_named_by_side():
    azimuth_deg = torch.tensor([0.0, 90.0, 180.0, -90.0, 45.0, 360.0])
    assert view_names(azimuth_deg) == ["front", "left", "back", "right", "45°", "front"]


WRONG = {
    "empty": ([], [], [], "no images"),
    "ragged": ([cards(1, 2)[0], cards(1, 1)[0]], ["a", "b"], ["x", "y"], "one image for each pair"),
    "names": (cards(1, 2), ["a"], ["x"], "one image for each pair"),
    "sizes": ([[*cards(1, 1)[0], *cards(1, 1, (9, 9))[0]]], ["a"], ["x", "y"], "one size"),
}


@pytest.mark.parametrize(("images", "rows", "columns", "words"), WRONG.values(), ids=WRONG.keys())
def test_grids_that_do_not_fit_are_named(images, rows, columns, words):
    with pytest.raises(ConfigError, match=words):
        contact_sheet(images, rows=rows, columns=columns)
