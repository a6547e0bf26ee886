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
NECK = (slice(31, 37), slice(45, 52))  # rows and columns; the chin ends at row 31
DECOLLETE = (slice(37, 48), slice(45, 52))
FACE_ATR, NECK_ATR, NECK_LIP = 11, 18, 10


def bare_necked(label: int) -> BodyMaps:
    """The person with a wide neckline, whose skin the labels call so."""
    body = person_maps()
    parse = body.parse.copy()
    parse[NECK], parse[DECOLLETE] = label, label
    return replace(body, parse=parse)


def as_lip(body: BodyMaps) -> BodyMaps:
    """The same with LIP's labels."""
    numbers = {0: 0, 2: 2, 4: 5, 6: 9, 9: 18, 10: 19, 11: 13, 14: 14, 15: 15}
    return replace(body, parse=np.vectorize(numbers.get)(body.parse), layout="lip")


def shares(mask: np.ndarray, *places: tuple[slice, slice]) -> list[float]:
    """How much of each place is painted anew."""
    return [float(mask[place].mean()) for place in places]


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
@pytest.mark.parametrize("mode", ["tight", "loose", "bbox"])
@pytest.mark.parametrize("part", ["upper", "dress"])
def test_the_neck_that_atr_counts_as_face_is_painted_anew(algorithm, mode, part):
    """From 20 of 512 rows above the shoulders (row 36) on, as LaDI-VTON takes DressCode."""
    body = bare_necked(FACE_ATR)
    mask = mask_of(body, part, algorithm, mode)
    assert shares(mask, NECK, DECOLLETE) == [1.0, 1.0]
    assert not mask[:31][body.parse[:31] == FACE_ATR].any()
    assert not mask_of(body, "lower", algorithm, "tight")[:48][body.parse[:48] == FACE_ATR].any()


def test_the_shoulders_line_may_slope_and_the_keypoint_of_the_neck_may_stand_in():
    body = bare_necked(FACE_ATR)
    keypoints = person_keypoints()
    keypoints[5, 1] = 60.0 / SIZE[0]  # the left shoulder
    sloping = replace(body, keypoints=keypoints).labelled("neck")
    rows, columns = np.nonzero(sloping)
    line = 36.0 + (columns + 0.5 - 36.0)  # 24 rows lower, 24 columns further
    assert (rows + 0.5 > line - 5.0).all()
    assert not sloping[40, 50]
    assert sloping[47, 46]
    keypoints = person_keypoints()
    keypoints[2, 2] = 0.0
    from_neck = replace(body, keypoints=keypoints).labelled("neck")
    assert np.flatnonzero(from_neck.any(axis=1))[0] == 34
    keypoints[1, 2] = 0.0
    assert not replace(body, keypoints=keypoints, parts=None).labelled("neck").any()


def test_the_face_of_people_seen_from_aside_stays():
    """A line through shoulders that are almost in one place would cut it anywhere."""
    body, keypoints = bare_necked(FACE_ATR), person_keypoints()
    keypoints[[2, 5], 0] = np.array([47.5, 48.5]) / SIZE[1]
    keypoints[5, 1] = 40.0 / SIZE[0]
    neck = replace(body, keypoints=keypoints).labelled("neck")
    assert not neck[:31].any()
    assert neck[DECOLLETE].all()


def test_body_parts_tell_the_decollete_where_there_are_no_keypoints():
    body = replace(bare_necked(FACE_ATR), keypoints=None)
    mask = mask_of(body, "upper", "cat_vton")
    assert shares(mask, DECOLLETE) == [1.0]
    assert not mask[body.parts == 23].any()


def test_labels_that_tell_neck_and_face_apart_are_believed():
    """IDM-VTON's maps have a label 18; the chin of a bent head stays."""
    body = bare_necked(NECK_ATR)
    parse = body.parse.copy()
    parse[32:34, 47:50] = FACE_ATR
    mask = mask_of(replace(body, parse=parse), "upper", "idm_vton")
    assert shares(mask, DECOLLETE) == [1.0]
    assert not mask[32:34, 47:50].any()


@pytest.mark.parametrize("algorithm", ["viton_hd", "idm_vton"])
def test_the_neck_of_viton_hds_labels_is_painted_anew(algorithm):
    body = as_lip(person_maps())
    body.parse[NECK], body.parse[DECOLLETE] = NECK_LIP, NECK_LIP
    assert shares(mask_of(body, "upper", algorithm), NECK, DECOLLETE) == [1.0, 1.0]


@pytest.mark.parametrize(("side", "number", "wrist"), [("right", 15, 4), ("left", 14, 7)])
@pytest.mark.parametrize("joint", [0, 1])
def test_an_arm_that_ends_out_of_sight_is_painted_anew_as_a_whole(side, number, wrist, joint):
    """As get_mask_location of IDM-VTON's demo; 14 is the person's own left arm."""
    body, keypoints = person_maps(sleeves=False), person_keypoints()
    keypoints[wrist - joint, 2] = 0.0
    mask = mask_of(replace(body, keypoints=keypoints), "upper", "idm_vton")
    assert mask[body.parse == number].all(), side
    other = HANDS[1 if side == "right" else 0]
    assert not mask[other[1], other[0]]


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
    for algorithm in ALGORITHMS:
        assert np.array_equal(
            mask_of(as_lip(body), "upper", algorithm), mask_of(body, "upper", algorithm)
        )


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
