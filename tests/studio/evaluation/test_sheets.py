"""Contact sheets of judged images."""

from __future__ import annotations

import pytest
import torch

from studio.evaluation.sheets import (
    COLUMN_GAP,
    GAP,
    GREY,
    HEADINGS_EVERY,
    LINE_HEIGHT,
    RIGHT,
    WRONG,
    comparison_cells,
    comparison_sheet,
    filmstrip,
    judged_sheet,
)


def test_a_filmstrip_joins_images_side_by_side():
    images = torch.rand(3, 4, 5, 3)
    strip = filmstrip(images)
    assert strip.shape == (4, 15, 3)
    assert torch.equal(strip[:, 5:10], images[1])


def test_images_keep_their_pixels_and_labels_their_colour():
    images = [torch.full((16, 32, 3), value) for value in (0.2, 0.4, 0.6)]
    sheet = judged_sheet(images, ["red car", "odd\nity", "last"], [True, False, True], columns=2)
    below = 2 * LINE_HEIGHT + 1
    step = 16 + below + GAP
    assert sheet.shape == (2 * step + GAP, 2 * (32 + GAP) + GAP, 3)
    assert (sheet[GAP : GAP + 16, GAP : GAP + 32] == 0.2).all()
    assert (sheet[GAP + step : GAP + step + 16, GAP : GAP + 32] == 0.6).all()
    labels = sheet[GAP + 16 : GAP + 16 + below]
    left, right = labels[:, GAP : GAP + 32], labels[:, 2 * GAP + 32 : 2 * GAP + 64]
    for ink, cell in ((RIGHT, left), (WRONG, right)):
        distance = (cell - torch.tensor(ink)).abs().sum(-1)
        assert distance.min() < 0.1


@pytest.mark.parametrize("count", [0, 2])
def test_unequal_numbers_are_refused(count):
    with pytest.raises(ValueError, match="as many"):
        judged_sheet([torch.rand(4, 4, 3)] * count, ["a"], [True])


def test_a_comparison_has_a_row_for_each_prompt_and_a_column_for_each_system():
    images = [[torch.full((16, 60, 3), 0.2), None], [None, torch.full((16, 60, 3), 0.6)]]
    sheet = comparison_sheet(
        images,
        rows=["a red duck", "a blue cup"],
        columns=["demo", "magic3d"],
        right=[[True, False], [False, False]],
    )
    row = LINE_HEIGHT + 16 + GAP
    assert sheet.shape == (2 * GAP + LINE_HEIGHT + 2 + 2 * row, 2 * GAP + 2 * 60 + COLUMN_GAP, 3)
    top = GAP + LINE_HEIGHT + 2 + LINE_HEIGHT
    first = slice(GAP, GAP + 60)
    second = slice(GAP + 60 + COLUMN_GAP, GAP + 120 + COLUMN_GAP)
    assert (sheet[top : top + 16, first] == 0.2).all()
    assert (sheet[top + row : top + row + 16, second] == 0.6).all()
    under = slice(top + 16, top + 16 + GAP)
    assert torch.allclose(sheet[under, first], torch.tensor(RIGHT))
    assert (sheet[under, second] == 1.0).all()
    below = slice(top + row + 16, top + row + 16 + GAP)
    assert torch.allclose(sheet[below, second], torch.tensor(WRONG))


def test_a_comparison_that_does_not_fit_its_labels_is_refused():
    image = torch.rand(4, 4, 3)
    with pytest.raises(ValueError, match="expected 1 rows of 2"):
        comparison_sheet([[image]], rows=["x"], columns=["a", "b"], right=[[True]])
    with pytest.raises(ValueError, match="at least one image"):
        comparison_sheet([[None]], rows=["x"], columns=["a"], right=[[True]])


def test_a_long_comparison_repeats_its_headings():
    def sheet(rows: int) -> torch.Tensor:
        image = torch.full((16, 60, 3), 0.2)
        labels = [f"prompt {k}" for k in range(rows)]
        return comparison_sheet(
            [[image]] * rows, rows=labels, columns=["demo"], right=[[True]] * rows
        )

    row, heading = LINE_HEIGHT + 16 + GAP, LINE_HEIGHT + 2
    short, long = sheet(HEADINGS_EVERY), sheet(HEADINGS_EVERY + 1)
    assert len(long) - len(short) == row + heading
    again = GAP + heading + HEADINGS_EVERY * row
    assert torch.equal(long[again : again + heading], long[GAP : GAP + heading])


def test_a_word_stands_where_an_image_is_missing():
    image = torch.full((16, 60, 3), 0.2)

    def field(cell: str | None) -> torch.Tensor:
        sheet = comparison_sheet(
            [[image, cell]], rows=["x"], columns=["a", "b"], right=[[True, True]]
        )
        top = GAP + LINE_HEIGHT + 2 + LINE_HEIGHT
        return sheet[top : top + 16 + GAP, GAP + 60 + COLUMN_GAP : -GAP]

    assert (field(None)[:16] == GREY).all()
    assert field("failed")[:16].min() < 0.5
    assert (field("failed")[16:] == 1.0).all(), "no bar"


@pytest.mark.parametrize("rows", [1, HEADINGS_EVERY, 2 * HEADINGS_EVERY + 1])
def test_the_fields_of_a_comparison_come_back(rows):
    images = torch.rand(rows, 2, 16, 60, 3)
    sheet = comparison_sheet(
        [list(row) for row in images],
        rows=["x"] * rows,
        columns=["a", "b"],
        right=[[True, False]] * rows,
    )
    cells = comparison_cells(sheet, rows=rows, columns=2, size=(16, 60))
    assert torch.equal(torch.stack([torch.stack(row) for row in cells]), images)


def test_a_sheet_of_another_shape_has_no_such_fields():
    with pytest.raises(ValueError, match=r"expected \(51, 138, 3\), 1 rows and 2 columns"):
        comparison_cells(torch.rand(50, 138, 3), rows=1, columns=2, size=(16, 60))
