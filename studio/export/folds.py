"""Faces that are listed more than once, and faces back to back, which decimation leaves behind."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from studio.export.triangles import Triangles

__all__ = ["corner_sets", "drop_doubled"]


def corner_sets(faces: Int[np.ndarray, "f 3"], n_vertices: int) -> Int[np.ndarray, " f"]:
    """One number for each face, equal exactly for faces with the same corners in any order."""
    low, middle, high = np.sort(faces, axis=1).T
    return (low * n_vertices + middle) * n_vertices + high


def drop_doubled(mesh: Triangles) -> Triangles:
    """Remove faces with a corner twice, copies of a face, and faces that lie back to back.

    Two faces of the same corners that look opposite ways are a fold without inside. One of them
    left alone would be a flap that opens a closed surface, so they go together.
    """
    faces = mesh.t_pos_idx
    proper = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    # Around a face the index rises twice for one orientation, once for the other.
    side = np.where((faces < np.roll(faces, -1, axis=1)).sum(axis=1) == 2, 1, -1)
    _, group = np.unique(corner_sets(faces, len(mesh.v_pos)), return_inverse=True)
    balance = np.bincount(group, weights=side, minlength=1)
    wanted = np.flatnonzero(proper & (side == np.sign(balance)[group]))
    _, first = np.unique(group[wanted], return_index=True)
    keep = np.zeros(len(faces), dtype=bool)
    keep[wanted[first]] = True
    return mesh.keep_faces(keep)
