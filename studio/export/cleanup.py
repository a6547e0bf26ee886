"""Repair of extracted surfaces: duplicates, slivers, small holes."""

from __future__ import annotations

import numpy as np

from studio.export.triangles import Triangles, boundary_edges

__all__ = ["drop_degenerate", "fill_holes", "repair", "weld"]

# Relative to the bounding box: far below a float32 vertex grid's useful resolution.
WELD_FRACTION = 1e-6
# Height of a triangle over its longest side: below it the normal is numerical noise.
SLIVER_RATIO = 1e-5
# A loop longer than this is an opening of the model, not a defect of the extraction.
MAX_HOLE_EDGES = 64


def repair(mesh: Triangles) -> tuple[Triangles, int]:
    """Weld vertices, drop slivers and doubled faces, close small holes.

    Returns:
        The repaired mesh and the number of holes closed.
    """
    return fill_holes(drop_degenerate(weld(mesh)))


def weld(mesh: Triangles) -> Triangles:
    """Merge vertices that coincide up to ``WELD_FRACTION`` of the bounding box."""
    if not len(mesh.v_pos):
        return mesh
    lower, upper = mesh.bounds()
    step = max(float((upper - lower).max()), 1e-12) * WELD_FRACTION
    keys = np.round((mesh.v_pos - lower) / step).astype(np.int64)
    flat = (keys[:, 0] * (1 << 21) + keys[:, 1]) * (1 << 21) + keys[:, 2]
    _, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
    return Triangles(mesh.v_pos[first], inverse[mesh.t_pos_idx])


def drop_degenerate(mesh: Triangles) -> Triangles:
    """Remove faces without area, with repeated corners, or listed twice."""
    faces = mesh.t_pos_idx
    corners = mesh.corners()
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(axis=1, initial=0)
    keep = 2.0 * mesh.areas() > SLIVER_RATIO * longest**2
    distinct = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    low, middle, high = np.sort(faces, axis=1).T
    n = len(mesh.v_pos)
    _, first = np.unique((low * n + middle) * n + high, return_index=True)
    once = np.zeros(len(faces), dtype=bool)
    once[first] = True
    return mesh.keep_faces(keep & distinct & once)


def fill_holes(mesh: Triangles) -> tuple[Triangles, int]:
    """Close boundary loops of at most ``MAX_HOLE_EDGES`` edges with a fan around their centre."""
    edges = boundary_edges(mesh)
    vertices, faces = [mesh.v_pos], [mesh.t_pos_idx]
    n, filled = len(mesh.v_pos), 0
    for loop in _loops(edges):
        if not 3 <= len(loop) <= MAX_HOLE_EDGES:
            continue
        # The filling runs along each boundary edge in the opposite direction.
        after = np.roll(loop, -1)
        if len(loop) == 3:
            faces.append(np.array([[loop[2], loop[1], loop[0]]]))
        else:
            vertices.append(mesh.v_pos[loop].mean(axis=0, keepdims=True))
            faces.append(np.stack([after, loop, np.full(len(loop), n)], axis=1))
            n += 1
        filled += 1
    if not filled:
        return mesh, 0
    return drop_degenerate(Triangles(np.concatenate(vertices), np.concatenate(faces))), filled


def _loops(edges: np.ndarray) -> list[np.ndarray]:
    """Chain directed boundary edges into closed vertex loops; open or branching chains are left."""
    starts, counts = np.unique(edges[:, 0], return_counts=True)
    simple = set(starts[counts == 1].tolist())
    following = {int(a): int(b) for a, b in edges if int(a) in simple}
    loops = []
    while following:
        first, current = following.popitem()
        loop = [first]
        while current != first and current in following:
            loop.append(current)
            current = following.pop(current)
        if current == first:
            loops.append(np.array(loop))
    return loops
