"""The shipped pose network on drawn people whose joints are known, and its decoding in closed form.

``PUBLISHED`` is what TensorFlow.js makes of the published file for the same picture, in 192 x 192
bytes: x and y as shares of the side, and the score.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from image_tools.errors import WeightsMissing
from image_tools.tryon.samples import KEYPOINT_NAMES
from image_tools.vision.poses import COCO_POINTS, MoveNetPoses, decode_pose
from renderers.errors import ShapeError
from scenes.wardrobe.samples import PairConfig, draw_pairs
from studio.training.tryon_data import keypoint_shares

HEIGHT = 192
PUBLISHED = (
    *((0.510, 0.128, 0.65), (0.530, 0.113, 0.90), (0.491, 0.114, 0.90), (0.556, 0.143, 0.74)),
    *((0.467, 0.145, 0.74), (0.593, 0.253, 0.92), (0.424, 0.239, 0.94), (0.665, 0.389, 0.83)),
    *((0.363, 0.375, 0.84), (0.717, 0.495, 0.80), (0.338, 0.487, 0.73), (0.550, 0.488, 0.91)),
    *((0.447, 0.483, 0.87), (0.553, 0.734, 0.90), (0.424, 0.730, 0.85), (0.553, 0.933, 0.68)),
    (0.399, 0.940, 0.84),
)
SURE = 0.25


@pytest.fixture(scope="module")
def finder() -> MoveNetPoses:
    return MoveNetPoses()


@pytest.fixture(scope="module")
def people() -> tuple[torch.Tensor, torch.Tensor]:
    """Two people, the second from head to foot, and their true keypoints as shares."""
    pairs = draw_pairs(PairConfig(height=HEIGHT, other=False), split="test", first=4, count=2)
    order = [KEYPOINT_NAMES.index(name) for name in COCO_POINTS]
    return pairs.worn.rgb, keypoint_shares(pairs)[:, order]


def test_joints_are_found_where_they_are_and_not_where_they_are_not(finder, people):
    for image, true in zip(*people, strict=True):
        found, is_there = finder.pose(image), true[:, 2] > 0
        shape = torch.tensor([image.shape[1] / HEIGHT, 1.0])
        away = ((found[:, :2] - true[:, :2]) * shape).norm(dim=1)[is_there]
        assert float(away.max()) < 0.1, "shares of the height; hips are defined otherwise"
        assert float(away.mean()) < 0.035
        assert (found[is_there, 2] > SURE).all()
        assert (found[~is_there, 2] < SURE).all()
    assert int((people[1][:, :, 2] == 0).sum()) == 4, "legs of the first are cut off"


def test_the_shipped_bytes_say_what_the_published_network_says(finder, people):
    image = people[0][1]
    margin = (HEIGHT - image.shape[1]) // 2
    square = F.pad(image.movedim(-1, 0), (margin, margin)).movedim(0, -1)
    found, published = finder.pose(square), torch.tensor(PUBLISHED)
    assert float((found[:, :2] - published[:, :2]).abs().max()) < 2.0 / HEIGHT
    assert float((found[:, 2] - published[:, 2]).abs().max()) < 0.1


def test_a_picture_of_another_shape_is_padded_and_points_are_its_own(finder, people):
    image = people[0][1]
    margin = (HEIGHT - image.shape[1]) // 2
    square = F.pad(image.movedim(-1, 0), (margin, margin)).movedim(0, -1)
    narrow, wide = finder.pose(image), finder.pose(square)
    torch.testing.assert_close(narrow[:, 0] * image.shape[1] + margin, wide[:, 0] * HEIGHT)
    torch.testing.assert_close(narrow[:, 1:], wide[:, 1:])


def test_nothing_is_sure_where_nobody_is(finder):
    assert float(finder.pose(torch.full((64, 64, 3), 0.5))[:, 2].max()) < SURE


def outputs() -> dict[str, torch.Tensor]:
    """Two people: a sure one in a corner, and a less sure one near the middle."""
    made = {"centers": torch.zeros(1, 48, 48, 1), "points": torch.zeros(1, 48, 48, 17)}
    made |= {"regressed": torch.zeros(1, 48, 48, 34), "offsets": torch.zeros(1, 48, 48, 34)}
    made["centers"][0, 2, 3], made["centers"][0, 22, 25] = 0.9, 0.6
    made["regressed"][0, 22, 25, 4:6] = torch.tensor([-10.0, 4.0])  # of point 2: rows, columns
    made["points"][0, 12, 30, 2] = 0.7  # a cell beside the place that is expected
    made["points"][0, 2, 2, 2] = 0.9
    made["offsets"][0, 12, 30, 4:6] = torch.tensor([0.5, 0.25])
    return made


def test_a_point_is_the_sure_cell_near_the_place_that_the_middle_person_gives():
    pose = decode_pose(outputs())
    assert pose.shape == (1, 17, 3)
    torch.testing.assert_close(pose[0, 2], torch.tensor([30.25 / 48, 12.5 / 48, 0.7]))
    both = {name: torch.cat([tensor, tensor]) for name, tensor in outputs().items()}
    both["points"][1, 12, 30, 2] = 0.01
    torch.testing.assert_close(decode_pose(both)[0], pose[0])
    torch.testing.assert_close(decode_pose(both)[1, 2], torch.tensor([2 / 48, 2 / 48, 0.9]))


def test_absent_files_and_what_is_no_picture_are_refused(finder, tmp_path):
    with pytest.raises(WeightsMissing, match=r"movenet-lightning"):
        MoveNetPoses(tmp_path)
    with pytest.raises(ShapeError, match="image"):
        finder.pose(torch.zeros(1, 8, 8, 3))
