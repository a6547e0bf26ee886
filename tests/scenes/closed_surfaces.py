"""Predicates on triangle soups that the toybox tests share."""

from __future__ import annotations

import numpy as np

__all__ = ["face_normals", "is_closed", "signed_volume"]

Array = np.ndarray


def signed_volume(vertices: Array, faces: Array) -> float:
    """Volume by the divergence theorem; positive when faces look outwards."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def face_normals(vertices: Array, faces: Array) -> Array:
    """Cross products of the edges ``[F, 3]``; their length is twice the area."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def is_closed(vertices: Array, faces: Array) -> bool:
    """Whether every edge is met once in each direction, after joining equal positions."""
    _, joined = np.unique(np.round(vertices, 6), axis=0, return_inverse=True)
    triangles = joined.reshape(-1)[faces]
    first, second, third = triangles.T
    proper = (first != second) & (second != third) & (third != first)
    triangles = triangles[proper]
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    forward = sorted(map(tuple, edges.tolist()))
    backward = sorted((b, a) for a, b in edges.tolist())
    return forward == backward
