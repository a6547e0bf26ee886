"""Camera poses from angles and look-at points (docs/conventions.md).

World right-handed with +z up, azimuth from +x towards +y, elevation from the xy plane towards +z.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["directions_from_angles", "look_at", "up_from_angles", "wrap_deg"]

# Beyond this elevation the view direction is too close to world up to orient the image by it.
POLE_ELEVATION_DEG = 89.9


def directions_from_angles(
    azimuth_deg: Float[Tensor, " b"], elevation_deg: Float[Tensor, " b"]
) -> Float[Tensor, "b 3"]:
    """Unit vectors from the origin towards (azimuth, elevation), both in degrees."""
    azimuth, elevation = torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg)
    flat = elevation.cos()
    return torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), elevation.sin()], dim=-1)


def up_from_angles(
    azimuth_deg: Float[Tensor, " b"], elevation_deg: Float[Tensor, " b"]
) -> Float[Tensor, "b 3"]:
    """World up, or near the poles its limit along the meridian, so that every pose is defined."""
    world_up = azimuth_deg.new_tensor([0.0, 0.0, 1.0]).expand(len(azimuth_deg), 3)
    meridian = directions_from_angles(azimuth_deg, elevation_deg + 90.0)
    at_pole = elevation_deg.abs() > POLE_ELEVATION_DEG
    return torch.where(at_pole[:, None], meridian, world_up)


def look_at(
    position: Float[Tensor, "b 3"], center: Float[Tensor, "b 3"], up: Float[Tensor, "b 3"]
) -> Float[Tensor, "b 4 4"]:
    """Camera-to-world transforms that look from ``position`` to ``center``; det(R) = +1."""
    forward = F.normalize(center - position, dim=-1)
    right = F.normalize(torch.linalg.cross(forward, up), dim=-1)
    c2w = position.new_zeros(len(position), 4, 4)
    c2w[:, :3, 0] = right
    c2w[:, :3, 1] = torch.linalg.cross(right, forward)
    c2w[:, :3, 2] = -forward
    c2w[:, :3, 3] = position
    c2w[:, 3, 3] = 1.0
    return c2w


def wrap_deg(angle_deg: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The same angle in -180..180, without 180 itself."""
    return torch.remainder(angle_deg + 180.0, 360.0) - 180.0
