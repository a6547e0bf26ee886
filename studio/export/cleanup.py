"""Repair of extracted surfaces: duplicates, slivers, small holes. What is closed stays closed."""

from __future__ import annotations

import numpy as np

from studio.export.folds import corner_sets, drop_doubled
from studio.export.slivers import remove_slivers
from studio.export.triangles import Triangles, boundary_edges

__all__ = ["drop_flat", "fill_holes", "repair", "weld"]

# Relative to the bounding box: far below a float32 vertex grid's useful resolution.
WELD_FRACTION = 1e-6
# A loop longer than this is an opening of the model, not a defect of the extraction.
MAX_HOLE_EDGES = 64


def repair(mesh: Triangles) -> tuple[Triangles, int]:
    """Weld vertices, take out slivers and doubled faces, close small holes.

    Returns:
        The repaired mesh and the number of holes closed.
    """
    return fill_holes(drop_flat(remove_slivers(drop_doubled(weld(mesh)))))


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


def fill_holes(mesh: Triangles) -> tuple[Triangles, int]:
    """Close boundary loops of at most ``MAX_HOLE_EDGES`` edges with a fan around their centre.

    Returns:
        The mesh and the number of loops that are closed now.
    """
    holes = _holes(mesh)
    if not holes:
        return mesh, 0
    vertices, faces = [mesh.v_pos], [mesh.t_pos_idx]
    n = len(mesh.v_pos)
    for loop in holes:
        # The filling runs along each boundary edge in the opposite direction.
        if len(loop) == 3:
            faces.append(loop[None, ::-1])
        else:
            vertices.append(mesh.v_pos[loop].mean(axis=0, keepdims=True))
            faces.append(np.stack([np.roll(loop, -1), loop, np.full(len(loop), n)], axis=1))
            n += 1
    # The corners of a slit lie on one line: its filling is a sliver, which is flipped into place.
    filled = Triangles(np.concatenate(vertices), np.concatenate(faces))
    filled = drop_flat(remove_slivers(drop_doubled(filled)))
    return filled, max(len(holes) - len(_holes(filled)), 0)


def drop_flat(mesh: Triangles) -> Triangles:
    """Remove faces that have no area in float32, which is what files hold."""
    if not len(mesh.t_pos_idx):
        return mesh
    single = (mesh.v_pos - mesh.bounds()[0]).astype(np.float32).astype(np.float64)
    return mesh.keep_faces(Triangles(single, mesh.t_pos_idx).areas() > 0.0)


def _holes(mesh: Triangles) -> list[np.ndarray]:
    """Boundary loops to be filled: no large openings, nor the outline of a single triangle."""
    loops = [loop for loop in _loops(boundary_edges(mesh)) if 3 <= len(loop) <= MAX_HOLE_EDGES]
    if not loops:
        return []
    n = len(mesh.v_pos)
    corners = set(corner_sets(mesh.t_pos_idx, n).tolist())
    return [loop for loop in loops if len(loop) > 3 or corner_sets(loop[None], n)[0] not in corners]


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
