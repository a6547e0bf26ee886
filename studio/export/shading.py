"""Normals, and the flat vertex layout that files need.

A vertex is split where its corners differ in texture coordinate, or where two faces meet at more
than the crease angle, so that the edges of a box stay hard and a ball stays round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from studio.export.triangles import Triangles, boundary_edges, corner_angles
from studio.export.unwrap import Atlas

__all__ = ["FlatMesh", "corner_normals", "flatten"]

# Corners whose normals agree to this step share one vertex.
NORMAL_STEP = 1e-3
# Share of the neighbours in a face's orientation: 10 degrees on a box, all of it on a sliver.
NEIGHBOUR_WEIGHT = 0.1
PAIRS = 1 << 22
"""Pairs of corners that are compared at a time; bounds the memory."""


@dataclass(frozen=True)
class FlatMesh:
    """One index for all attributes, as GPUs and file formats want it."""

    position: Float[np.ndarray, "n 3"]
    """Positions, float32."""
    normal: Float[np.ndarray, "n 3"]
    """Unit normals, float32."""
    faces: Int[np.ndarray, "f 3"]
    """Vertex indices, counter-clockwise from outside."""
    uv: Float[np.ndarray, "n 2"] | None = None
    """Texture coordinates, (0, 0) at the top left of the image, as in glTF."""
    rgb: Float[np.ndarray, "n 3"] | None = None
    """Display-referred (sRGB) vertex colours in 0..1."""
    closed: bool = True
    """Whether the surface has no border. One that has is seen from behind, too."""


def corner_normals(mesh: Triangles, *, crease_deg: float) -> Float[np.ndarray, "f 3 3"]:
    """Unit normal of every corner: mean of the faces around its vertex that lean less than
    ``crease_deg`` from the corner's own face, weighted by their area and angle.

    Decimation leaves a few slivers whose own normal is noise. So a face's orientation in the
    crease test is its area vector plus a fraction of those of its neighbours: a face of ordinary
    size keeps its own, a sliver takes on its neighbourhood's.
    """
    vertex = mesh.t_pos_idx.reshape(-1)
    area = mesh.area_vectors()
    orientation = np.repeat(
        _unit(area + NEIGHBOUR_WEIGHT * _neighbour_sum(mesh, area)), 3, axis=0
    )  # [3f, 3]
    weighted = np.repeat(area, 3, axis=0) * corner_angles(mesh).reshape(-1, 1)
    total, least = np.zeros_like(weighted), np.cos(np.radians(crease_deg))
    for first, second in _corner_pairs(vertex, len(mesh.v_pos)):
        cosine = np.einsum("pi,pi->p", orientation[first], orientation[second])
        # A face's own corner always counts: at 0 degrees it is alone, and rounding may hide it.
        close = (cosine > least) | (first == second)
        start, end = first[0], first[-1] + 1
        rows, parts = first[close] - start, weighted[second[close]]
        for i in range(3):
            total[start:end, i] += np.bincount(rows, parts[:, i], minlength=end - start)
    defined = np.linalg.norm(total, axis=-1, keepdims=True) > 0.0
    return _unit(np.where(defined, total, orientation)).reshape(-1, 3, 3)


def flatten(
    mesh: Triangles,
    *,
    crease_deg: float,
    atlas: Atlas | None = None,
    v_rgb: Float[np.ndarray, "v 3"] | None = None,
) -> FlatMesh:
    """Split vertices at creases and texture seams.

    Args:
        mesh: the surface, without degenerate faces.
        crease_deg: edges sharper than this get two normals.
        atlas: texture coordinates, if the asset is textured.
        v_rgb: one colour per vertex of ``mesh``, if it is not.
    """
    normal = corner_normals(mesh, crease_deg=crease_deg).reshape(-1, 3)
    vertex = mesh.t_pos_idx.reshape(-1)
    tex = atlas.t_tex_idx.reshape(-1) if atlas is not None else np.zeros_like(vertex)
    steps = np.round(normal / NORMAL_STEP).astype(np.int64) + 1024  # 11 bits each
    direction = (steps[:, 0] << 22) | (steps[:, 1] << 11) | steps[:, 2]
    corner = vertex * (int(tex.max(initial=0)) + 1) + tex
    order = np.lexsort((direction, corner))
    changed = (np.diff(corner[order]) != 0) | (np.diff(direction[order]) != 0)
    index = np.empty(len(vertex), dtype=np.int64)
    index[order] = np.concatenate([[0], np.cumsum(changed)])
    chosen = order[np.concatenate([[True], changed])]
    unit = normal[chosen].astype(np.float32)
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    return FlatMesh(
        position=mesh.v_pos[vertex[chosen]].astype(np.float32),
        normal=unit,
        faces=index.reshape(-1, 3),
        uv=None if atlas is None else atlas.uv[tex[chosen]].astype(np.float32),
        rgb=None if v_rgb is None else v_rgb[vertex[chosen]].astype(np.float32),
        closed=not len(boundary_edges(mesh)),
    )


def _unit(vectors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Scale to unit length; +y where there is no direction."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 0.0, vectors / np.where(length > 0.0, length, 1.0), [0.0, 1.0, 0.0])


def _neighbour_sum(mesh: Triangles, area: Float[np.ndarray, "f 3"]) -> Float[np.ndarray, "f 3"]:
    """Sum of ``area`` over the faces that share an edge with each face."""
    edges = np.stack([mesh.t_pos_idx, np.roll(mesh.t_pos_idx, -1, axis=1)], axis=-1)  # [f, 3, 2]
    low, high = np.sort(edges.reshape(-1, 2), axis=1).T
    _, edge = np.unique(low * len(mesh.v_pos) + high, return_inverse=True)
    per_corner = np.repeat(area, 3, axis=0)
    over_edge = np.stack([np.bincount(edge, weights=per_corner[:, i]) for i in range(3)], axis=-1)
    return (over_edge[edge] - per_corner).reshape(-1, 3, 3).sum(axis=1)


def _corner_pairs(vertex: np.ndarray, n_vertices: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All ordered pairs of corners that share a vertex, each corner with itself included.

    They come in parts of about ``PAIRS``, by the first corner: a vertex of n faces has n^2 pairs,
    and a cone's tip may have thousands.
    """
    order = np.argsort(vertex, kind="stable")
    counts = np.bincount(vertex, minlength=n_vertices)
    starts = np.cumsum(counts) - counts
    repeats = counts[vertex]
    before = np.cumsum(repeats) - repeats
    part = before // PAIRS
    for corners in np.split(np.arange(len(vertex)), np.flatnonzero(np.diff(part)) + 1):
        if not len(corners):  # no faces
            return
        here = repeats[corners]
        first = np.repeat(corners, here)
        offset = np.arange(len(first)) - np.repeat(np.cumsum(here) - here, here)
        yield first, order[starts[vertex[first]] + offset]
