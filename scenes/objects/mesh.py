"""An object of the pack in memory, and its normals.

Conventions are docs/conventions.md: +z up, the front at azimuth 0 (towards +x), the farthest
vertex from the centre of the bounding box at ``OBJECT_RADIUS``, as in the toybox; texture
coordinates start at the top left. Faces look outwards as far as the model has an outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from renderers.mesh import Mesh

__all__ = ["ObjectMesh", "corner_normals"]

CREASE_DEG = 40.0
"""Faces that meet at a sharper angle keep an edge between them."""


@dataclass(frozen=True)
class ObjectMesh:
    """A triangle mesh with a colour or an image for each material.

    Attributes:
        name: its name in the pack.
        v_pos: ``[V, 3]`` float32; t_pos_idx: ``[F, 3]`` int64.
        v_tex: ``[T, 2]`` float32; t_tex_idx: ``[F, 3]`` int64, where there is an image.
        face_material: ``[F]`` int64.
        rgb: ``[M, 3]`` float32, display-referred, where a material has no image.
        opacity: ``[M]`` float32.
        image: ``[M]`` int64, index into ``images`` or -1.
        images: ``[h, w, 4]`` uint8 each; coordinates outside 0..1 repeat.
        parts: the names of the materials in the source, which often name body or garment parts.
    """

    name: str
    v_pos: np.ndarray
    t_pos_idx: np.ndarray
    v_tex: np.ndarray
    t_tex_idx: np.ndarray
    face_material: np.ndarray
    rgb: np.ndarray
    opacity: np.ndarray
    image: np.ndarray
    images: tuple[np.ndarray, ...]
    parts: tuple[str, ...]

    def geometry(self) -> Mesh:
        """The shape alone, as the renderers and the metrics take it."""
        return Mesh(torch.from_numpy(self.v_pos), torch.from_numpy(self.t_pos_idx))

    @cached_property
    def normals(self) -> np.ndarray:
        """Unit normals ``[F, 3, 3]`` of the corners, computed once; see :func:`corner_normals`."""
        return corner_normals(self.v_pos, self.t_pos_idx)


def corner_normals(v_pos: np.ndarray, tri: np.ndarray) -> np.ndarray:
    """Unit normals ``[F, 3, 3]`` of the corners: smooth, but for creases.

    The normal at a corner is the area-weighted mean over the faces around its vertex that lie
    within ``CREASE_DEG`` of its own face.
    """
    a, b, c = (v_pos[tri[:, k]] for k in range(3))
    weighted = np.cross(b - a, c - a).astype(np.float64)
    unit = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-20)
    vertex = tri.reshape(-1)
    order = np.argsort(vertex, kind="stable")
    count = np.bincount(vertex)
    start = np.cumsum(count) - count
    # One row for each pair of a corner and a corner at the same vertex.
    around = count[vertex]
    corner = np.repeat(np.arange(len(vertex)), around)
    offset = np.arange(len(corner)) - np.repeat(np.cumsum(around) - around, around)
    other = order[start[vertex[corner]] + offset] // 3
    near = (unit[corner // 3] * unit[other]).sum(1) >= np.cos(np.deg2rad(CREASE_DEG))
    corner, other = corner[near], other[near]
    total = np.stack(
        [np.bincount(corner, weighted[other, k], minlength=len(vertex)) for k in range(3)], 1
    )
    length = np.linalg.norm(total, axis=1, keepdims=True)
    total = np.where(length > 1e-20, total / np.maximum(length, 1e-20), (0.0, 0.0, 1.0))
    return total.reshape(-1, 3, 3).astype(np.float32)
