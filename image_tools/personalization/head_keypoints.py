"""Where the five facial landmarks of a head in a 3D scene land in each camera, for InstantID in 3D.

The head is a template: distances of an average face, which looks along +x (azimuth 0). Seen from
further than ``FADE_END_DEG`` to the side or from above or below there are no landmarks to follow:
a tool's strengths are multiplied by ``face_visibility``, which falls from 1 at the front to 0.

    kps = head_keypoints(cameras, HeadConfig(center=(0, 0, 0.1), height=1.0))
    images = draw_keypoints(kps.pixels(512, 512), (512, 512), seen=kps.seen)

The distances were measured: medians of Face Mesh's points over 81 painted portraits, aligned to
each other (Procrustes) and made symmetric. How the face lies in the head follows proportions:
eyes half-way up, a third of the height before its middle, 0.274 of the height apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.personalization.instant_id_configs import HeadConfig
from renderers.boxes import project_points
from renderers.cameras import Cameras

__all__ = ["HeadKeypoints", "face_visibility", "head_keypoints", "head_points"]

# Forward, to the picture's right when seen from the front, and up, from the middle of the eyes, in
# distances between them: left eye, right eye, nose, left and right corner of the mouth.
FACE = (
    (0.0, -0.5, 0.0),
    (0.0, 0.5, 0.0),
    (0.636, 0.0, -0.544),
    (0.152, -0.365, -1.05),
    (0.152, 0.365, -1.05),
)
# Shares of the head's height.
EYE_DISTANCE, EYES_FORWARD = 0.274, 0.33
FADE_END_DEG = 75.0
# Outward directions of eyes and mouth are turned from the face's by so much to their sides.
EYE_TURN_DEG, MOUTH_TURN_DEG = 20.0, 15.0


@dataclass(frozen=True)
class HeadKeypoints:
    """Landmarks of one head in a batch of cameras."""

    shares: Float[Tensor, "b 5 2"]
    """x from the left and y from the top, as shares of the image."""
    seen: Bool[Tensor, "b 5"]
    """Whether the head does not hide them."""
    visibility: Float[Tensor, " b"]
    """Share of a tool's strength, 0 where the face is turned away."""

    def pixels(self, height: int, width: int) -> Float[Tensor, "b 5 2"]:
        """Landmarks in pixels of an image."""
        return self.shares * self.shares.new_tensor([width, height])


def head_points(head: HeadConfig) -> Float[Tensor, "5 3"]:
    """The landmarks of a head in the world."""
    face = torch.tensor(FACE) * EYE_DISTANCE
    face[:, 0] += EYES_FORWARD
    return _turned(face * head.height, head.azimuth_deg) + torch.tensor(head.center)


def head_keypoints(cameras: Cameras, head: HeadConfig) -> HeadKeypoints:
    """Landmarks of a head as cameras see them."""
    points = head_points(head).to(cameras.c2w)
    shares, depth = project_points(cameras, points)
    sides = torch.tensor([-EYE_TURN_DEG, EYE_TURN_DEG, 0.0, -MOUTH_TURN_DEG, MOUTH_TURN_DEG])
    angles = torch.deg2rad(sides)
    outward = torch.stack([angles.cos(), angles.sin(), torch.zeros(5)], dim=-1)
    outward = _turned(outward, head.azimuth_deg).to(points)
    towards = cameras.position[:, None] - points
    seen = ((towards * outward).sum(dim=-1) > 0.0) & (depth > 0.0)
    return HeadKeypoints(shares, seen, _visibility(cameras.position, head))


def face_visibility(angle_deg: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 where a face is seen from its front, 0 from ``FADE_END_DEG`` on.

    Args:
        angle_deg: between where the face looks and the direction to the camera.
    """
    end = math.cos(math.radians(FADE_END_DEG))
    return ((torch.deg2rad(angle_deg).cos() - end) / (1.0 - end)).clamp(min=0.0)


def _visibility(positions: Float[Tensor, "b 3"], head: HeadConfig) -> Float[Tensor, " b"]:
    forward = _turned(torch.tensor([[1.0, 0.0, 0.0]]), head.azimuth_deg)[0].to(positions)
    towards = positions - positions.new_tensor(head.center)
    cosine = (towards @ forward) / towards.norm(dim=-1).clamp(min=1e-12)
    return face_visibility(torch.rad2deg(cosine.clamp(-1.0, 1.0).arccos()))


def _turned(points: Float[Tensor, "n 3"], azimuth_deg: float) -> Float[Tensor, "n 3"]:
    """Points turned about the vertical, so that +x looks to an azimuth."""
    angle = math.radians(azimuth_deg)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = cos * points[:, 0] - sin * points[:, 1], sin * points[:, 0] + cos * points[:, 1]
    return torch.stack([x, y, points[:, 2]], dim=-1)
