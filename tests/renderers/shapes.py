"""Meshes and views that several renderer tests share."""

from __future__ import annotations

import torch
import trimesh
from torch import Tensor

from renderers.cameras import Cameras, orbit_cameras
from renderers.mesh import Mesh


def icosphere(subdivisions: int, radius: float = 0.5) -> Mesh:
    """A sphere of ``20 * 4**subdivisions`` faces around the origin."""
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh(
        torch.tensor(sphere.vertices, dtype=torch.float32),
        torch.tensor(sphere.faces, dtype=torch.int64),
    )


def blob(subdivisions: int) -> Mesh:
    """An icosphere with dents, which hides parts of itself."""
    sphere = icosphere(subdivisions)
    p = sphere.v_pos * 2
    scale = 1 + 0.15 * torch.sin(7 * p[:, :1]) * torch.cos(5 * p[:, 1:2])
    return Mesh(sphere.v_pos * scale, sphere.t_pos_idx)


def views(n_views: int, height: int, width: int) -> Cameras:
    """Cameras around the origin, 2.6 away, slightly above."""
    return orbit_cameras(
        n_views, elevation_deg=15.0, distance=2.6, fovy_deg=40.0, height=height, width=width
    )


def screen_triangle(corners: list[list[float]], size: tuple[int, int], z: float = 0.0) -> Tensor:
    """Clip positions [3, 4] (w = 1) of a triangle given by its (column, row) corners in pixels."""
    height, width = size
    points = torch.tensor(corners)
    x = points[:, 0] / width * 2 - 1
    y = points[:, 1] / height * 2 - 1
    return torch.stack([x, y, torch.full_like(x, z), torch.ones_like(x)], 1)
