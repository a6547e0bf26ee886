"""The layout grammar: a table, what it refuses, and random layouts that tile the image."""

from __future__ import annotations

import random

import pytest

from image_tools.control.regional import rect_masks
from image_tools.control.regional_configs import (
    RegionalConfig,
    RegionConfig,
    RegionRect,
    parse_ratio,
)
from renderers.errors import StudioError


@pytest.mark.parametrize(
    ("text", "rects"),
    [
        ("1", [(0, 1, 0, 1)]),
        ("1,1", [(0, 1, 0, 0.5), (0, 1, 0.5, 1)]),
        ("1, 3", [(0, 1, 0, 0.25), (0, 1, 0.25, 1)]),
        ("1;1", [(0, 0.5, 0, 1), (0.5, 1, 0, 1)]),
        ("1,1;3,1", [(0, 0.25, 0, 1), (0.25, 1, 0, 1)]),
        ("1,1,1; 3,1", [(0, 0.25, 0, 0.5), (0, 0.25, 0.5, 1), (0.25, 1, 0, 1)]),
        ("1.5,2,2; .5", [(0, 0.75, 0, 0.5), (0, 0.75, 0.5, 1), (0.75, 1, 0, 1)]),
    ],
)
def test_layouts(text, rects):
    assert parse_ratio(text) == tuple(RegionRect(*rect) for rect in rects)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing between separators"),
        ("1,,1", "nothing between separators"),
        ("1,1;", "nothing between separators"),
        ("1,a", "has 'a'"),
        ("1,0", "has '0'"),
        ("1,-2", "has '-2'"),
        ("1,nan", "has 'nan'"),
        ("1,inf", "has 'inf'"),
        ("1,1e999", "has '1e999'"),
        ("1:1", "has '1:1'"),
    ],
)
def test_what_is_no_layout_is_refused(text, message):
    with pytest.raises(StudioError, match=message) as caught:
        parse_ratio(text)
    assert "Rows are separated by ';'" in str(caught.value)


def test_any_layout_tiles_any_image():
    draw = random.Random(3)
    for _ in range(200):
        counts = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
        rows = [
            ",".join(f"{draw.uniform(0.1, 9):.2f}" for _ in range(count + (len(counts) > 1)))
            for count in counts
        ]
        masks = rect_masks(parse_ratio(";".join(rows)), (draw.randint(1, 40), draw.randint(1, 40)))
        assert len(masks) == sum(counts)
        assert masks.sum(dim=0).eq(1).all()


def test_random_text_is_read_or_refused():
    draw = random.Random(4)
    for _ in range(500):
        text = "".join(draw.choice("0123456789.,;- eE+x") for _ in range(draw.randint(0, 9)))
        try:
            rects = parse_ratio(text)
        except StudioError:
            continue
        assert all(0 <= r.top < r.bottom <= 1 and 0 <= r.left < r.right <= 1 for r in rects)


def test_shares_of_the_base_are_the_plan_s_or_the_region_s_own():
    plan = RegionalConfig("1,1", (RegionConfig("a"), RegionConfig("b", base_ratio=0.0)))
    assert plan.base_ratios == (0.5, 0.0)


def test_plans_that_do_not_fit_are_refused():
    with pytest.raises(StudioError, match="makes 2 regions and there are 1 prompts"):
        RegionalConfig("1,1", (RegionConfig("a"),))
    with pytest.raises(StudioError, match=r"base_ratio is 1.5 - expected 0 to 1"):
        RegionalConfig("1", (RegionConfig("a", base_ratio=1.5),))
