"""The edges of a mesh on the CPU: a bucket per vertex instead of a sort.

Gives the same table as ``torch_topology``, entry by entry. Callers hold no lock; this module does.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from renderers.backends.numba_runtime import KERNEL_LOCK

__all__ = ["edge_table"]

_KERNEL = {"cache": True, "error_model": "numpy", "boundscheck": False}


@njit(inline="always")
def _ends(tri, half_edge):
    """First and last vertex of half-edge ``3 face + corner``."""
    f, k = half_edge // 3, half_edge % 3
    return tri[f, k], tri[f, (k + 1) % 3]


@njit(**_KERNEL)
def _sort_half_edges(tri, start, member, high):
    """Half-edges by their (lower, higher) vertex, equal ones in order; their higher vertices."""
    n = 3 * len(tri)
    for h in range(n):
        a, b = _ends(tri, h)
        start[min(a, b) + 1] += 1
    for v in range(1, len(start)):
        start[v] += start[v - 1]
    fill = start[:-1].copy()
    for h in range(n):
        a, b = _ends(tri, h)
        v, key = min(a, b), max(a, b)
        # A handful in each bucket, so insertion is fast; it keeps equal ones in their order.
        j = fill[v] - 1
        while j >= start[v] and high[j] > key:
            member[j + 1], high[j + 1] = member[j], high[j]
            j -= 1
        member[j + 1], high[j + 1] = h, key
        fill[v] += 1


@njit(**_KERNEL)
def _pair(tri, start, member, high, vertices, faces, opposite, consistent):
    """Write the table and return the number of edges."""
    e = 0
    for v in range(len(start) - 1):
        i, end = start[v], start[v + 1]
        while i < end:
            h = member[i]
            a, b = _ends(tri, h)
            vertices[e, 0], vertices[e, 1] = a, b
            faces[e, 0], faces[e, 1] = h // 3, -1
            opposite[e, 0] = opposite[e, 1] = tri[h // 3, (h % 3 + 2) % 3]
            consistent[e] = True
            if i + 1 < end and high[i + 1] == high[i]:
                i += 1
                h = member[i]
                faces[e, 1] = h // 3
                opposite[e, 1] = tri[h // 3, (h % 3 + 2) % 3]
                consistent[e] = _ends(tri, h)[1] == a
            i += 1
            e += 1
    return e


def edge_table(tri: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``vertices, faces, opposite [E, 2]`` and ``consistent [E]`` of faces ``[F, 3]``."""
    n = 3 * len(tri)
    start = np.zeros(int(tri.max()) + 2 if n else 1, np.int64)
    member, high = np.empty(n, np.int64), np.empty(n, np.int64)
    vertices, faces, opposite = (np.empty((n, 2), np.int64) for _ in range(3))
    consistent = np.empty(n, np.bool_)
    corners = tri.contiguous().numpy()
    with KERNEL_LOCK:
        _sort_half_edges(corners, start, member, high)
        e = _pair(corners, start, member, high, vertices, faces, opposite, consistent)
    return tuple(torch.from_numpy(array[:e]) for array in (vertices, faces, opposite, consistent))
