"""How near the shape of an asset is to the shape of the true object, whatever way it faces.

Both are centred by their bounding box and scaled to a common radius first. Surfaces are compared
by points that can be seen from outside, because true objects are made of parts that reach into
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import cKDTree
from torch import Tensor

from renderers.cameras import Cameras, orbit_cameras
from renderers.errors import EmptyGeometry, check_shape
from renderers.mesh import Mesh, face_normals
from renderers.raster import rasterize, to_clip

__all__ = ["SilhouetteMatch", "best_yaw_iou", "chamfer", "visible_points"]

YAWS = 24
"""Turns that are tried, 15 degrees apart."""
_BUFFER = 192
_DEPTH_TOLERANCE = 0.02


@dataclass(frozen=True)
class SilhouetteMatch:
    """The turn at which silhouettes agree best."""

    iou: float
    """Mean intersection over union at that turn, over views and true individuals."""
    yaw_deg: float
    """Turn of the asset against the true object about +z, -180..180."""


def best_yaw_iou(
    masks: Float[Tensor, "views h w"], true_masks: Float[Tensor, "individuals yaws h w"]
) -> SilhouetteMatch:
    """Silhouette agreement at the best turn.

    View i of the asset, at azimuth 360 i / views, is compared with the true objects seen from
    azimuth 360 i / views + s for all turns s. The mean over views and individuals is taken first
    and the best turn after it, so one turn must suit all: the individuals of a kind differ, and
    which of them the prompt meant is unknown.

    Args:
        masks: coverage of the asset, 0..1, equally spaced views.
        true_masks: coverage of each true individual at equally spaced azimuths; their number is a
            multiple of the number of views.

    Raises:
        ValueError: the numbers of views do not fit.
    """
    n, yaws = len(masks), true_masks.shape[1]
    if yaws % n:
        raise ValueError(f"{yaws} true views and {n} views - expected a multiple.")
    step = yaws // n
    scores = []
    for shift in range(yaws):
        true = true_masks.roll(-shift, 1)[:, ::step]
        overlap = torch.minimum(masks, true).sum((-1, -2))
        union = torch.maximum(masks, true).sum((-1, -2))
        scores.append((overlap / union.clamp(min=1e-6)).mean())
    best = int(torch.stack(scores).argmax())
    yaw = (360.0 * best / yaws + 180.0) % 360.0 - 180.0
    return SilhouetteMatch(float(scores[best]), -yaw)


def _surround(size: int) -> Cameras:
    """Cameras on four rings: from below, the side, above and the top."""
    rings = [
        orbit_cameras(n, elevation_deg=e, distance=3.0, fovy_deg=40.0, height=size, width=size)
        for n, e in ((6, -40.0), (8, 0.0), (6, 40.0), (1, 89.0), (1, -89.0))
    ]
    names = ("c2w", "fovy", "azimuth_deg", "elevation_deg", "camera_distance", "light_position")
    joined = {name: torch.cat([getattr(ring, name) for ring in rings]) for name in names}
    return Cameras(**joined, height=size, width=size)


def visible_points(mesh: Mesh, count: int, generator: torch.Generator) -> Float[np.ndarray, "n 3"]:
    """About ``count`` points, evenly spread over the part of the surface that is seen from outside.

    The mesh must fit the unit ball. Points are drawn by area and kept when one of 22 cameras around
    the object has nothing in front of them.

    Raises:
        EmptyGeometry: the mesh has no area.
    """
    area = torch.linalg.vector_norm(face_normals(mesh.v_pos, mesh.t_pos_idx), dim=1)
    if not area.sum() > 0:
        raise EmptyGeometry("The mesh has no area - expected a surface to evaluate.")
    drawn = 4 * count
    face = torch.multinomial(area, drawn, replacement=True, generator=generator)
    u, v = torch.rand((2, drawn, 1), generator=generator)
    u, v = torch.where(u + v > 1, 1 - u, u), torch.where(u + v > 1, 1 - v, v)
    a, b, c = mesh.v_pos[mesh.t_pos_idx[face]].unbind(1)
    points = a + u * (b - a) + v * (c - a)
    seen = points[_is_seen(mesh, points)]
    return seen[:count].numpy().astype(np.float64)


def _is_seen(mesh: Mesh, points: Float[Tensor, "n 3"]) -> Tensor:
    """Whether any camera around the mesh sees each point."""
    cameras = _surround(_BUFFER)
    mvp = cameras.mvp()
    raster = rasterize(to_clip(mesh.v_pos, mvp), mesh.t_pos_idx, (_BUFFER, _BUFFER))
    clip = to_clip(points, mvp)
    pixel = ((clip[..., :2] / clip[..., 3:] + 1) / 2 * _BUFFER).long().clamp(0, _BUFFER - 1)
    # z / w back to the distance along the axis: w = 2 f n / (f + n - z/w (f - n)).
    near, far = 0.01, 100.0
    front = 2 * far * near / (far + near - raster.zw * (far - near))
    front = torch.where(raster.tri_id > 0, front, torch.inf)
    view = torch.arange(len(cameras))[:, None]
    return (clip[..., 3] <= front[view, pixel[..., 1], pixel[..., 0]] + _DEPTH_TOLERANCE).any(0)


def chamfer(
    points: Float[np.ndarray, "n 3"],
    true_points: Sequence[Float[np.ndarray, "m 3"]],
    *,
    yaws: int = YAWS,
) -> float:
    """Chamfer distance at the best turn about +z, in units of the object's radius.

    The mean distance (not squared) from each point to the nearest point of the other surface,
    averaged over both directions and over the true individuals; the best turn after that mean.

    Args:
        points: on the asset, scaled to unit radius.
        true_points: on each true individual, scaled to unit radius.
        yaws: turns that are tried.
    """
    check_shape("points", torch.from_numpy(points), "N 3")
    trees = [cKDTree(true) for true in true_points]
    own = cKDTree(points)
    distances = []
    for angle in np.arange(yaws) * (2 * np.pi / yaws):
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        turned = points @ turn.T
        there = [tree.query(turned)[0].mean() for tree in trees]
        back = [own.query(true @ turn)[0].mean() for true in true_points]
        distances.append((np.mean(there) + np.mean(back)) / 2)
    return float(min(distances))
