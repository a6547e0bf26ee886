"""People as OpenPose draws them, which ControlNets of poses follow (arXiv 2302.05543, section 3.4).

Eighteen points in the colours of a wheel of hues, seventeen limbs at 60 % of them, on black; widths
are those of pictures of 512 pixels. Deviation: edges are smooth, where OpenCV draws whole pixels.

    finder = MoveNetPoses()                               # image_tools/vision/poses.py
    people = openpose_points(finder.pose(photo)[None], min_score=0.3)
    image = pose_image(people, (512, 512))                # [512, 512, 3] in 0..1
"""

from __future__ import annotations

import colorsys

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.stick_figures import Color, StickFigure, draw_figures
from image_tools.tryon.pose_maps import LIMBS
from image_tools.tryon.samples import KEYPOINT_NAMES
from image_tools.vision.poses import COCO_POINTS
from renderers.errors import check_shape

__all__ = ["openpose_points", "pose_image"]

# Pixels of a picture of so many.
HALF_WIDTH, RADIUS, DRAWN_FOR = 4.0, 4.0, 512.0
NECK, SHOULDERS = "neck", ("left_shoulder", "right_shoulder")


def openpose_points(poses: Float[Tensor, "n 17 3"], *, min_score: float) -> Float[Tensor, "n 18 3"]:
    """COCO's keypoints in OpenPose's order, with the neck in the middle of the shoulders.

    Args:
        poses: x, y, and how sure each is.
        min_score: what is less sure is not drawn.

    Returns:
        x, y, and 1 for what is drawn.
    """
    check_shape("poses", poses, f"N {len(COCO_POINTS)} 3")
    left, right = (poses[:, COCO_POINTS.index(name)] for name in SHOULDERS)
    middle = (left[:, :2] + right[:, :2]) / 2.0
    surely = torch.minimum(left[:, 2:], right[:, 2:])
    own = dict(zip(COCO_POINTS, poses.unbind(dim=1), strict=True))
    own[NECK] = torch.cat([middle, surely], dim=1)
    points = torch.stack([own[name] for name in KEYPOINT_NAMES], dim=1)
    return torch.cat([points[..., :2], (points[..., 2:] >= min_score).to(points)], dim=-1)


def pose_image(people: Float[Tensor, "n 18 3"], size: tuple[int, int]) -> Float[Tensor, "h w 3"]:
    """Everybody in one picture, in 0..1.

    Args:
        people: x and y as shares of the width and the height, and 1 for what is drawn.
        size: rows and columns.
    """
    check_shape("people", people, f"N {len(KEYPOINT_NAMES)} 3")
    colors = _wheel(len(KEYPOINT_NAMES))
    scale = max(size) / DRAWN_FOR
    figure = StickFigure(
        sticks=LIMBS,
        stick_colors=colors[: len(LIMBS)],
        point_colors=colors,
        half_width=HALF_WIDTH * scale,
        radius=RADIUS * scale,
    )
    pixels = people[..., :2] * people.new_tensor([size[1], size[0]])
    return draw_figures(pixels, figure, size, seen=people[..., 2] > 0)


def _wheel(count: int) -> tuple[Color, ...]:
    """Full colours whose hues are evenly apart."""
    hues = (colorsys.hsv_to_rgb(k / count, 1.0, 1.0) for k in range(count))
    return tuple(tuple(round(255.0 * part) for part in hue) for hue in hues)
