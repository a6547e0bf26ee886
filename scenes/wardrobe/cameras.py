"""Cameras that frame people as try-on data sets do: three quarters for tops, else all of them.

cameras = frame_people(people, torch.zeros(16), height=128, width=96)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.cameras import Cameras
from renderers.poses import directions_from_angles, look_at, up_from_angles
from scenes.wardrobe.people import People

__all__ = ["frame_people"]

DISTANCE = 5.0
CLOSE, WHOLE = (1.26, 1.10), (0.91, 1.86)
"""Height of the image's middle and metres from top to bottom, of a person of stature 1."""


def frame_people(
    people: People,
    azimuth_deg: Float[Tensor, " b"],
    *,
    whole: Bool[Tensor, " b"],
    height: int,
    width: int,
    elevation_deg: float = 4.0,
) -> Cameras:
    """One camera for each person.

    Args:
        people: who is seen.
        azimuth_deg: from where; 0 is the front, before the person's own turn.
        whole: show head to feet, not to the knees.
        height: of the images.
        width: of the images.
        elevation_deg: of the cameras.
    """
    size = people.stature
    middle = torch.where(whole, WHOLE[0], CLOSE[0]) * size
    extent = torch.where(whole, WHOLE[1], CLOSE[1]) * size
    azimuth = azimuth_deg.to(size)
    elevation = torch.full_like(size, elevation_deg)
    center = torch.stack([torch.zeros_like(size), torch.zeros_like(size), middle], dim=1)
    position = center + DISTANCE * directions_from_angles(azimuth, elevation)
    return Cameras(
        c2w=look_at(position, center, up_from_angles(azimuth, elevation)),
        fovy=2.0 * torch.atan(0.5 * extent / DISTANCE),
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        camera_distance=torch.full_like(size, DISTANCE),
        light_position=position + math.pi * people.light,
        height=height,
        width=width,
    )
