"""Faces that all look outwards.

Model files mix windings and are partly inside out. Neighbouring faces are made to agree first;
then every connected patch is turned to the side from which it is seen from outside, by a count of
pixels over views from all around.

    tri = outward(v_pos, tri)
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from renderers.cameras import orbit_cameras
from renderers.raster import rasterize, to_clip

__all__ = ["agreeing", "outward"]

SIZE = 96
ELEVATIONS_DEG = (-45.0, 5.0, 50.0)
AZIMUTHS = 6
DISTANCE = 4.0


def agreeing(tri: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which faces ``[F]`` to turn so that neighbours agree, and the patch of each face.

    Faces are neighbours across an edge that exactly two of them share.
    """
    count = len(tri)
    start, end = tri.reshape(-1), np.roll(tri, -1, 1).reshape(-1)
    face = np.repeat(np.arange(count), 3)
    low, high = np.minimum(start, end), np.maximum(start, end)
    order = np.lexsort((face, high, low))
    low, high, face, forward = low[order], high[order], face[order], (start < end)[order]
    new = np.r_[True, (low[1:] != low[:-1]) | (high[1:] != high[:-1])]
    first = np.nonzero(new)[0]
    first = first[np.diff(np.r_[first, len(low)]) == 2]
    one, other = face[first], face[first + 1]
    # Two nodes for each face, as it is and turned; edges join what agrees.
    opposed = forward[first] == forward[first + 1]
    one = np.concatenate([one, one + count])
    other = np.concatenate([other + count * opposed, other + count * ~opposed])
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(2 * count, 2 * count))
    label = connected_components(graph, directed=False)[1]
    as_is, turned = label[:count], label[count:]
    return as_is > turned, np.minimum(as_is, turned)


def outward(v_pos: np.ndarray, tri: np.ndarray) -> np.ndarray:
    """The faces ``[F, 3]`` counter-clockwise seen from outside.

    Args:
        v_pos: ``[V, 3]``, inside the unit ball.
        tri: ``[F, 3]``.
    """
    turn, patch = agreeing(tri)
    votes = _votes(v_pos, np.where(turn[:, None], tri[:, ::-1], tri))
    against = np.bincount(patch, weights=votes, minlength=patch.max() + 1)[patch] < 0
    return np.where((turn ^ against)[:, None], tri[:, ::-1], tri)


def _votes(v_pos: np.ndarray, tri: np.ndarray) -> np.ndarray:
    """Pixels that see the front of each face minus pixels that see its back."""
    votes = np.zeros(len(tri))
    positions = torch.from_numpy(v_pos).float()
    faces = torch.from_numpy(np.ascontiguousarray(tri))
    a, b, c = (v_pos[tri[:, k]] for k in range(3))
    normal = np.cross(b - a, c - a)
    for elevation in ELEVATIONS_DEG:
        cameras = orbit_cameras(
            AZIMUTHS, elevation_deg=elevation, distance=DISTANCE, fovy_deg=30.0, height=SIZE,
            width=SIZE,
        )  # fmt: skip
        seen = rasterize(to_clip(positions, cameras.mvp()), faces, (SIZE, SIZE)).tri_id.numpy()
        for k, eye in enumerate(cameras.position.numpy()):
            pixels = np.bincount(seen[k].reshape(-1), minlength=len(tri) + 1)[1:]
            votes += pixels * np.sign(((eye - a) * normal).sum(1))
    return votes
