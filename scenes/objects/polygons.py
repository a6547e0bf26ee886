"""Triangles of planar polygons: fans where convex, ears where not.

The ear clipping rule is Meisters, "Polygons have ears" (1975): a corner can be cut off when it is
convex and no other corner lies in its triangle.

    triangles, polygon = triangulate(v_pos, corner_vertex, counts)
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["triangulate"]

FLAT = 1e-4
"""Reflex turns below this share of the polygon's area count as straight."""


def triangulate(
    v_pos: np.ndarray, corner_vertex: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons into triangles.

    Args:
        v_pos: ``[V, 3]`` positions.
        corner_vertex: ``[n]`` vertex of each corner, polygon after polygon.
        counts: ``[P]`` corners of each polygon, at least 3.

    Returns:
        ``[F, 3]`` indices into the corners, and ``[F]`` the polygon of each triangle, in order.
    """
    starts = np.cumsum(counts) - counts
    triangles, owner = [], []
    for size in np.unique(counts):
        members = np.nonzero(counts == size)[0]
        corners = starts[members][:, None] + np.arange(size)  # [m, size]
        if size > 3:
            concave = _turns(v_pos[corner_vertex[corners]]).min(1) < -FLAT
            for row in np.nonzero(concave)[0]:
                ears = _ears(_flattened(v_pos[corner_vertex[corners[row]]]))
                triangles.append(corners[row][ears])
                owner.append(np.full(len(ears), members[row]))
            corners, members = corners[~concave], members[~concave]
        fan = np.stack([np.zeros(size - 2, int), np.arange(1, size - 1), np.arange(2, size)], 1)
        triangles.append(corners[:, fan].reshape(-1, 3))
        owner.append(np.repeat(members, size - 2))
    triangles, owner = np.concatenate(triangles), np.concatenate(owner)
    order = np.argsort(owner, kind="stable")
    return triangles[order], owner[order]


def _normal(points: np.ndarray) -> np.ndarray:
    """Newell's normal of polygons ``[..., n, 3]``, twice the area long."""
    return np.cross(points, np.roll(points, -1, -2)).sum(-2)


def _turns(points: np.ndarray) -> np.ndarray:
    """How far each corner turns to the inside, ``[..., n]``; negative at reflex corners."""
    points = points - points[..., :1, :]
    before, after = points - np.roll(points, 1, -2), np.roll(points, -1, -2) - points
    normal = _normal(points)
    area = np.maximum((normal**2).sum(-1), 1e-300)[..., None]
    return np.einsum("...kc,...c->...k", np.cross(before, after), normal) / area


def _flattened(points: np.ndarray) -> np.ndarray:
    """Polygon ``[n, 3]`` along its strongest axis, counter-clockwise ``[n, 2]``."""
    points = points - points[0]
    normal = _normal(points)
    axis = int(np.abs(normal).argmax())
    flat = points[:, [(axis + 1) % 3, (axis + 2) % 3]]
    return flat if normal[axis] > 0 else flat * (1, -1)


@njit(cache=True)
def _ears(flat):
    """Triangles ``[n - 2, 3]`` of a counter-clockwise polygon ``[n, 2]``."""
    count = len(flat)
    left = np.arange(count)
    ears = np.empty((count - 2, 3), np.int64)
    for done in range(count - 2):
        size = count - done
        # A polygon that crosses itself may have no ear; any corner then does as well.
        chosen = 0
        for k in range(size):
            if _is_ear(flat, left, size, k):
                chosen = k
                break
        ears[done, 0] = left[(chosen - 1) % size]
        ears[done, 1] = left[chosen]
        ears[done, 2] = left[(chosen + 1) % size]
        left[chosen : size - 1] = left[chosen + 1 : size].copy()
    return ears


@njit(cache=True)
def _side(flat, a, b, p):
    return (flat[b, 0] - flat[a, 0]) * (flat[p, 1] - flat[a, 1]) - (flat[b, 1] - flat[a, 1]) * (
        flat[p, 0] - flat[a, 0]
    )


@njit(cache=True)
def _apart(flat, p, q):
    return flat[p, 0] != flat[q, 0] or flat[p, 1] != flat[q, 1]


@njit(cache=True)
def _is_ear(flat, left, size, k):
    a, b, c = left[(k - 1) % size], left[k], left[(k + 1) % size]
    if _side(flat, a, b, c) <= 0:
        return False
    for i in range(size):
        p = left[i]
        if _apart(flat, p, a) and _apart(flat, p, b) and _apart(flat, p, c):
            # A corner on the triangle's border would be left outside of what remains.
            within = _side(flat, a, b, p) >= 0 and _side(flat, b, c, p) >= 0
            if within and _side(flat, c, a, p) >= 0:
                return False
    return True
