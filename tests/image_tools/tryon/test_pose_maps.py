"""Heat maps, skeletons and coloured body parts against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from image_tools.tryon.pose_maps import (
    PART_COLORS,
    heat_maps,
    part_colors,
    part_labels,
    skeleton,
)
from renderers.errors import ShapeError
from tests.image_tools.tryon.people import POINTS, SIZE, person_keypoints

KEYPOINTS = torch.from_numpy(person_keypoints())[None]


def test_a_heat_map_is_a_bump_of_height_one_at_its_point():
    keypoints = torch.tensor([[[0.5, 0.25, 1.0], [0.5, 0.25, 0.0]]])
    maps = heat_maps(keypoints, (512, 384))
    assert maps.shape == (1, 2, 512, 384)
    assert maps[0, 1].abs().max() == 0.0
    assert maps[0, 0].argmax() in (
        127 * 384 + 191,
        127 * 384 + 192,
        128 * 384 + 191,
        128 * 384 + 192,
    )
    assert float(maps[0, 0].max()) == 1.0
    # From the four nearest centres, half a pixel away on both axes, to one 9.5 pixels below.
    expected = math.exp(-(9.5**2 + 0.5**2 - 2 * 0.5**2) / 9.0**2)
    assert math.isclose(float(maps[0, 0, 128 + 9, 192]), expected, rel_tol=1e-4)


def test_heat_maps_scale_with_the_picture():
    small, large = heat_maps(KEYPOINTS, (64, 48)), heat_maps(KEYPOINTS, (128, 96))
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    assert (pooled - small).abs().mean() < 2e-3


def test_a_skeleton_has_its_points_colours_and_skips_unknown_ones():
    picture = skeleton(KEYPOINTS, SIZE)
    column, row = POINTS["nose"]
    assert picture[0, row, column].tolist() == [1.0, 0.0, 0.0]
    assert picture[0, 0, 0].tolist() == [0.0, 0.0, 0.0]
    hidden = KEYPOINTS.clone()
    hidden[:, 1, 2] = 0.0  # the neck, in which most limbs meet
    assert (skeleton(hidden, SIZE) > 0).sum() < (picture > 0).sum()
    with pytest.raises(ShapeError, match="keypoints has shape"):
        skeleton(KEYPOINTS[:, :5], SIZE)


def test_body_parts_come_back_from_their_colours():
    parts = torch.arange(25).reshape(1, 5, 5)
    colors = part_colors(parts)
    assert torch.equal(part_labels(colors), parts)
    assert colors[0, 0, 0].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(colors[0, 4, 4] * 255.0, torch.tensor(PART_COLORS[-1], dtype=torch.float))
    with pytest.raises(ShapeError, match="from 1 to 25"):
        part_colors(parts + 1)
