"""Drawings of facial landmarks: exact pixels, proportions, and what is left out."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from image_tools.personalization.face_keypoints import (
    KEYPOINT_COLORS,
    draw_keypoints,
    draw_legacy_keypoints,
)

FACE = torch.tensor([[40.0, 44.0], [88.0, 46.0], [65.0, 70.0], [45.5, 94.0], [84.0, 95.0]])
SIZE = (128, 128)
DISC_PIXELS = 317
DIGEST = "ec82841bdd857ac7"


def test_legacy_pixels_are_opencvs():
    """The digest is of the authors' code with OpenCV, whose pixels these are."""
    image = draw_legacy_keypoints(FACE * 4.0, (512, 512))
    pixels = (image * 255.0).round().byte().numpy()
    counts = {tuple(c): int((pixels == c).all(axis=-1).sum()) for c in KEYPOINT_COLORS}
    assert counts == dict.fromkeys(KEYPOINT_COLORS, DISC_PIXELS)
    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == DIGEST


def test_legacy_discs_and_sticks_do_not_grow_with_the_picture():
    small, large = (draw_legacy_keypoints(FACE * k, (128 * k, 128 * k)) for k in (4, 8))
    disc = (large == torch.tensor([1.0, 0.0, 0.0])).all(dim=-1)
    assert int(disc.sum()) == int((small == torch.tensor([1.0, 0.0, 0.0])).all(dim=-1).sum())


@pytest.mark.parametrize("side", [64, 128, 512])
def test_drawings_are_the_same_at_every_size(side):
    """Areas are shares of the picture's, and discs are where they should be."""
    nose = torch.tensor([[False, False, True, False, False]])
    blue = draw_keypoints(FACE[None] * (side / 128.0), (side, side), seen=nose)[0, ..., 2]
    assert float(blue.sum()) / side**2 == pytest.approx(math.pi * (10.0 / 1024.0) ** 2, rel=0.1)
    middles = torch.arange(side) + 0.5
    place = [float((blue.sum(dim=axis) * middles).sum() / blue.sum()) for axis in (0, 1)]
    assert place == pytest.approx((FACE[2] * side / 128.0).tolist(), abs=0.05)


def test_a_large_drawing_is_nearly_the_legacy_one():
    smooth = draw_keypoints(FACE[None] * 8.0, (1024, 1024))[0]
    exact = draw_legacy_keypoints(FACE * 8.0, (1024, 1024))
    assert float((smooth - exact).abs().sum() / exact.sum()) < 0.25
    assert float(smooth.max()) == 1.0


def test_sticks_have_the_colour_of_their_beginning_darker():
    image = draw_keypoints(FACE[None] * 8.0, (1024, 1024))[0]
    for index, color in enumerate(KEYPOINT_COLORS):
        x, y = (FACE[index] * 8.0).int().tolist()
        assert (image[y, x] * 255.0).round().int().tolist() == list(color)
        if index != 2:
            x, y = ((FACE[index] + FACE[2]) * 4.0).int().tolist()
            assert image[y, x].tolist() == pytest.approx([0.6 * c / 255.0 for c in color])


def test_what_is_hidden_is_not_drawn():
    seen = torch.tensor([[True, False, True, True, True], [False] * 5])
    both = draw_keypoints(FACE.expand(2, 5, 2) * 4.0, (512, 512), seen=seen)
    green = torch.tensor(KEYPOINT_COLORS[1]) / 255.0
    is_green = (both[0] * (1.0 - green) == 0.0).all(dim=-1) & (both[0][..., 1] > 0.0)
    assert not is_green.any()
    assert float(both[0, ..., 0].max()) == 1.0
    assert float(both[1].max()) == 0.0


def test_points_outside_of_the_picture_are_cut_off():
    far = FACE - 60.0
    assert draw_legacy_keypoints(far, SIZE).shape == (*SIZE, 3)
    assert float(draw_legacy_keypoints(FACE - 1000.0, SIZE).max()) == 0.0
    assert float(draw_keypoints(FACE[None] - 1000.0, SIZE).max()) == 0.0
