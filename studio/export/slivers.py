"""Triangles so thin that their normal is noise, taken out without opening the surface.

Left out, a sliver would leave a slit, which is a border to all that ask whether the surface is
closed. A needle, whose shortest side is next to nothing, is collapsed along that side. A cap, whose
third corner lies on its longest side, gives that side up: it and the face across are cut along the
other diagonal of their quadrilateral. Both keep a closed surface closed.

    mesh = remove_slivers(mesh)
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from studio.export.folds import drop_doubled
from studio.export.triangles import Triangles

__all__ = ["remove_slivers"]

# Height of a triangle over its longest side: below it the normal is numerical noise.
SLIVER_RATIO = 1e-5
# Shortest over longest side: below it nobody sees the side vanish, and a flip leaves a sliver.
NEEDLE_RATIO = 1e-4
# Slivers lie alone as a rule; in a row each round takes out some.
MAX_ROUNDS = 16


def remove_slivers(mesh: Triangles) -> Triangles:
    """Collapse needles and flip caps; the few that resist stay."""
    for _ in range(MAX_ROUNDS):
        slivers = _flatness(mesh.corners()) <= SLIVER_RATIO
        if not slivers.any():
            break
        changed = _collapse(mesh, slivers) or _flip(mesh, slivers)
        if changed is None:
            break
        mesh = changed
    return mesh


def _flatness(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, " f"]:
    """Height over the longest side; 0 for a point."""
    longest = _sides(corners).max(axis=1, initial=0.0) ** 2
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.linalg.norm(normal, axis=-1) / np.where(longest > 0.0, longest, 1.0)


def _sides(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3"]:
    """Length of the side from each corner to the next."""
    return np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=-1)


def _collapse(mesh: Triangles, slivers: Bool[np.ndarray, " f"]) -> Triangles | None:
    """The mesh with the shortest sides of the needles shrunk to points; None if there are none."""
    sides = _sides(mesh.corners())
    rows = np.flatnonzero(slivers & (sides.min(axis=1) <= NEEDLE_RATIO * sides.max(axis=1)))
    if not len(rows):
        return None
    shortest = sides[rows].argmin(axis=1)
    start = mesh.t_pos_idx[rows, shortest]
    end = mesh.t_pos_idx[rows, (shortest + 1) % 3]
    # Always the higher number onto the lower, so that a chain of needles ends after some rounds.
    stands_for = np.arange(len(mesh.v_pos))
    stands_for[np.maximum(start, end)] = np.minimum(start, end)
    return drop_doubled(Triangles(mesh.v_pos, stands_for[mesh.t_pos_idx]))


def _flip(mesh: Triangles, slivers: Bool[np.ndarray, " f"]) -> Triangles | None:
    """The mesh with the longest sides of some caps flipped; None if none can be.

    A cap on a border has no face across and is left out: the border moves to its other sides.
    """
    faces, edges = mesh.t_pos_idx, _EdgeFaces(mesh)
    rows = np.flatnonzero(slivers)
    longest = _sides(mesh.corners()[rows]).argmax(axis=1)
    a, b, c = (faces[rows, (longest + k) % 3] for k in range(3))
    across = edges.find(b, a)
    at_border = rows[across < 0]
    d = np.where(across >= 0, faces[across].sum(axis=1) - a - b, c)
    one, other = np.stack([c, a, d], axis=1), np.stack([d, b, c], axis=1)
    before = np.minimum(*(_flatness(mesh.v_pos[f]) for f in (faces[rows], faces[across])))
    after = np.minimum(*(_flatness(mesh.v_pos[f]) for f in (one, other)))
    better = (across >= 0) & (after > before)
    # A diagonal that is an edge already comes to belong to four faces, so these are the last ones.
    is_free = (edges.find(c, d) < 0) & (edges.find(d, c) < 0)
    flips = np.flatnonzero(better & is_free if (better & is_free).any() else better)
    flips = flips[_apart(np.stack([rows[flips], across[flips]], axis=1))]
    if not len(flips) and not len(at_border):
        return None
    faces = faces.copy()
    faces[rows[flips]], faces[across[flips]] = one[flips], other[flips]
    keep = np.ones(len(faces), dtype=bool)
    keep[np.setdiff1d(at_border, across[flips])] = False
    return drop_doubled(Triangles(mesh.v_pos, faces).keep_faces(keep))


def _apart(pairs: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, " m"]:
    """Rows of pairs, first come first served, of which no two share a face."""
    taken: set[int] = set()
    rows = []
    for row, pair in enumerate(pairs.tolist()):
        if taken.isdisjoint(pair):
            taken.update(pair)
            rows.append(row)
    return np.array(rows, dtype=np.int64)


class _EdgeFaces:
    """The faces of a mesh by their directed edges."""

    def __init__(self, mesh: Triangles) -> None:
        self.n = len(mesh.v_pos)
        faces = mesh.t_pos_idx
        keys = (faces * self.n + np.roll(faces, -1, axis=1)).reshape(-1)
        self.order = np.argsort(keys, kind="stable")
        self.keys = keys[self.order]

    def find(
        self, start: Int[np.ndarray, " e"], end: Int[np.ndarray, " e"]
    ) -> Int[np.ndarray, " e"]:
        """A face that runs along each edge, -1 where there is none."""
        wanted = start * self.n + end
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.order[at] // 3, -1)
