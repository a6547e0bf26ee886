"""Pictures of poses: OpenPose's colours, limbs and order, and what is left out."""

from __future__ import annotations

import pytest
import torch

from image_tools.control.pose_images import openpose_points, pose_image
from image_tools.tryon.samples import KEYPOINT_NAMES
from image_tools.vision.poses import COCO_POINTS
from renderers.errors import ShapeError

# The colours of the public annotator, in its order of points and of limbs.
COLORS = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0)),
    *((0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255)),
    *((0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
# Where limb k goes from and to, counted from 1, in the public annotator.
LIMBS = (
    *((2, 3), (2, 6), (3, 4), (4, 5), (6, 7), (7, 8), (2, 9), (9, 10), (10, 11), (2, 12)),
    *((12, 13), (13, 14), (2, 1), (1, 15), (15, 17), (1, 16), (16, 18)),
)
SIZE = (512, 512)


def scattered() -> torch.Tensor:
    """Eighteen points that do not touch, on a circle."""
    angle = torch.arange(18) * (2 * torch.pi / 18)
    places = torch.stack([0.5 + 0.4 * angle.cos(), 0.5 + 0.4 * angle.sin()], dim=1)
    return torch.cat([places, torch.ones(18, 1)], dim=1)[None]


def color_at(image: torch.Tensor, place: torch.Tensor) -> tuple[int, ...]:
    column, row = (place * 512.0).long().tolist()
    return tuple((image[row, column] * 255.0).round().int().tolist())


def test_points_have_the_colours_of_the_public_annotator():
    points = scattered()
    image = pose_image(points, SIZE)
    assert tuple(color_at(image, place) for place in points[0, :, :2]) == COLORS


@pytest.mark.parametrize("limb", range(len(LIMBS)))
def test_limbs_join_its_points_in_its_colours(limb):
    start, end = (point - 1 for point in LIMBS[limb])
    points = scattered()
    points[..., 2] = 0.0
    points[:, [start, end], 2] = 1.0
    middle = points[0, [start, end], :2].mean(dim=0)
    expected = tuple(round(0.6 * part) for part in COLORS[limb])
    assert color_at(pose_image(points, SIZE), middle) == expected


def test_the_neck_lies_between_the_shoulders_and_unsure_points_are_left_out():
    poses = torch.rand(1, 17, 3, generator=torch.Generator().manual_seed(0))
    left, right = (COCO_POINTS.index(f"{side}_shoulder") for side in ("left", "right"))
    poses[0, :, 2] = 0.5
    poses[0, COCO_POINTS.index("left_ear"), 2] = 0.2
    people = openpose_points(poses, min_score=0.3)
    neck = people[0, KEYPOINT_NAMES.index("neck")]
    torch.testing.assert_close(neck[:2], (poses[0, left, :2] + poses[0, right, :2]) / 2)
    for name in COCO_POINTS:
        own = people[0, KEYPOINT_NAMES.index(name)]
        assert torch.equal(own[:2], poses[0, COCO_POINTS.index(name), :2])
        assert float(own[2]) == (0.0 if name == "left_ear" else 1.0)
    poses[0, left, 2] = 0.1
    assert float(openpose_points(poses, min_score=0.3)[0, KEYPOINT_NAMES.index("neck"), 2]) == 0.0


def test_a_small_picture_is_the_large_one_made_small():
    points = scattered()
    small, large = (pose_image(points, (side, side)) for side in (64, 512))
    shrunk = large.unflatten(0, (64, 8)).unflatten(2, (64, 8)).mean(dim=(1, 3))
    assert float((small - shrunk).abs().mean()) < 0.003
    assert pose_image(points[:0], (8, 8)).count_nonzero() == 0


def test_other_numbers_of_points_are_refused():
    with pytest.raises(ShapeError, match="people"):
        pose_image(torch.zeros(1, 17, 3), SIZE)
    with pytest.raises(ShapeError, match="poses"):
        openpose_points(torch.zeros(1, 18, 3), min_score=0.3)
