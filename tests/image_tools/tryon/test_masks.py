"""Agnostic masks of a drawn person: what they cover, what they keep, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from image_tools.tryon.masks import BodyMaps, agnostic_mask
from image_tools.tryon.masks_configs import MaskConfig
from renderers.errors import ShapeError, StudioError
from tests.image_tools.tryon.people import SIZE, person_keypoints, person_maps

ALGORITHMS = ("viton_hd", "idm_vton", "cat_vton")
FULL_BODY = 45.0
HANDS = ((24, 77), (72, 77))  # column and row


def mask_of(body: BodyMaps, part: str, algorithm: str, mode: str = "tight") -> np.ndarray:
    """The mask of a person who is seen from head to foot."""
    return agnostic_mask(body, part, MaskConfig(algorithm, mode, FULL_BODY))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mode", ["tight", "loose"])
def test_the_garment_goes_and_the_rest_of_the_person_stays(algorithm, mode):
    body = person_maps()
    mask = mask_of(body, "upper", algorithm, mode)
    assert mask[body.labelled("upper")].all()
    assert not mask[body.labelled("face", "hair", "pants", "shoes")].any()
    for column, row in HANDS:
        assert not mask[row, column]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pants_go_and_shirt_and_arms_stay(algorithm):
    body = person_maps()
    mask = mask_of(body, "lower", algorithm)
    assert mask[body.labelled("pants")].all()
    assert not mask[body.labelled("upper", "arms", "face", "shoes")].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_dress_takes_the_place_of_shirt_and_pants(algorithm):
    body = person_maps()
    mask = mask_of(body, "dress", algorithm)
    assert mask[body.labelled("upper", "pants")].all()
    assert not mask[body.labelled("face", "hair", "shoes")].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_bare_arms_are_painted_anew_for_long_sleeves(algorithm):
    body = person_maps(sleeves=False)
    mask = mask_of(body, "upper", algorithm)
    assert mask[60, 26]
    assert mask[60, 70]


def test_loose_covers_tight_and_a_box_covers_both():
    body = person_maps()
    for algorithm in ALGORITHMS:
        tight, loose, box = (
            mask_of(body, "upper", algorithm, m) for m in ("tight", "loose", "bbox")
        )
        assert (loose | ~tight).all()
        assert (box | ~loose | body.labelled("hair", "face")).all()
        assert tight.sum() < loose.sum() < box.sum()
        assert not box[body.labelled("face", "hair")].any()


def test_a_tight_mask_betrays_the_sleeves_and_a_box_does_not():
    long, short = person_maps(), person_maps(sleeves=False)
    boxes = [mask_of(body, "upper", "viton_hd", "bbox") for body in (long, short)]
    assert np.array_equal(*boxes)
    hulls = [mask_of(body, "upper", "cat_vton") for body in (long, short)]
    assert not np.array_equal(*hulls)


def test_masks_grow_with_the_picture():
    small = person_maps()
    large = BodyMaps(
        np.kron(small.parse, np.ones((2, 2), dtype=np.int64)),
        "atr",
        small.keypoints,
        np.kron(small.parts, np.ones((2, 2), dtype=np.int64)),
    )
    for algorithm in ALGORITHMS:
        halved = mask_of(large, "upper", algorithm)[::2, ::2]
        differs = (halved != mask_of(small, "upper", algorithm)).mean()
        assert differs < 0.03


def test_both_layouts_of_labels_make_the_same_mask():
    body = person_maps()
    numbers = {0: 0, 2: 2, 4: 5, 6: 9, 9: 18, 10: 19, 11: 13, 14: 14, 15: 15}
    lip = replace(body, parse=np.vectorize(numbers.get)(body.parse), layout="lip")
    for algorithm in ALGORITHMS:
        assert np.array_equal(mask_of(lip, "upper", algorithm), mask_of(body, "upper", algorithm))


def test_the_largest_piece_is_kept_and_its_holes_are_filled():
    body = person_maps()
    parse = body.parse.copy()
    parse[50:53, 47:50] = 0
    parse[2:4, 2:4] = 4
    mask = mask_of(replace(body, parse=parse), "upper", "idm_vton")
    assert mask[51, 48]
    assert not mask[3, 3]


def test_unknown_keypoints_draw_nothing():
    body = person_maps(sleeves=False)
    keypoints = person_keypoints()
    keypoints[:, 2] = 0.0
    blind = replace(body, keypoints=keypoints)
    mask = mask_of(blind, "upper", "viton_hd")
    assert not mask[60, 26]
    assert mask[body.labelled("upper")].all()


def test_what_is_absent_or_empty_is_said():
    body = person_maps()
    with pytest.raises(StudioError, match="viton_hd need keypoints"):
        mask_of(replace(body, keypoints=None), "upper", "viton_hd")
    with pytest.raises(StudioError, match="cat_vton need parts"):
        mask_of(replace(body, parts=None), "upper", "cat_vton")
    empty = np.zeros(SIZE, dtype=np.int64)
    with pytest.raises(StudioError, match="mask for 'lower' is empty"):
        mask_of(replace(body, parse=empty), "lower", "idm_vton")
    with pytest.raises(ShapeError, match=r"parts has shape \(3, 3\)"):
        BodyMaps(empty, parts=np.zeros((3, 3), dtype=np.int64))
    with pytest.raises(ValueError, match=r"arm_width is 0\.0"):
        MaskConfig(arm_width=0.0)
