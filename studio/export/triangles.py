"""Triangle meshes as numpy arrays, with the measures the export decides by.

Positions are float64 in world coordinates, faces are counter-clockwise seen from outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Triangles", "boundary_edges", "corner_angles", "face_components", "winding_number"]


@dataclass(frozen=True)
class Triangles:
    """An indexed triangle mesh."""

    v_pos: Float[np.ndarray, "v 3"]
    """Vertex positions, float64."""
    t_pos_idx: Int[np.ndarray, "f 3"]
    """Vertex indices of each face, int64."""

    @classmethod
    def of(cls, v_pos: np.ndarray, t_pos_idx: np.ndarray) -> Triangles:
        """Build from arrays of any number type."""
        return cls(
            np.ascontiguousarray(v_pos, dtype=np.float64).reshape(-1, 3),
            np.ascontiguousarray(t_pos_idx, dtype=np.int64).reshape(-1, 3),
        )

    def corners(self) -> Float[np.ndarray, "f 3 3"]:
        """Positions of the three corners of every face."""
        return self.v_pos[self.t_pos_idx]

    def area_vectors(self) -> Float[np.ndarray, "f 3"]:
        """Outward vectors whose length is the face's area."""
        corners = self.corners()
        return 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    def areas(self) -> Float[np.ndarray, " f"]:
        """Area of every face."""
        return np.linalg.norm(self.area_vectors(), axis=-1)

    def face_volumes(self) -> Float[np.ndarray, " f"]:
        """Signed volumes of the tetrahedra (origin, face); their sum is the enclosed volume."""
        corners = self.corners()
        return np.einsum("fi,fi->f", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0

    def volume(self) -> float:
        """Enclosed signed volume: positive when the faces of a closed surface look outwards."""
        return float(self.face_volumes().sum())

    def bounds(self) -> Float[np.ndarray, "2 3"]:
        """Lower and upper corner of the bounding box."""
        return np.stack([self.v_pos.min(axis=0), self.v_pos.max(axis=0)])

    def keep_faces(self, keep: np.ndarray) -> Triangles:
        """The faces where ``keep`` holds, with unused vertices removed."""
        faces = self.t_pos_idx[keep]
        used = np.zeros(len(self.v_pos), dtype=bool)
        used[faces] = True
        return Triangles(self.v_pos[used], (np.cumsum(used) - 1)[faces])


def face_components(mesh: Triangles) -> Int[np.ndarray, " f"]:
    """Number every face by its connected part (shared vertices), largest part first by face
    count."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    faces = mesh.t_pos_idx
    rows = np.concatenate([faces[:, 0], faces[:, 1]])
    cols = np.concatenate([faces[:, 1], faces[:, 2]])
    n = len(mesh.v_pos)
    graph = coo_matrix((np.ones(len(rows), dtype=bool), (rows, cols)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    _, of_face, counts = np.unique(labels[faces[:, 0]], return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return rank[of_face]


def boundary_edges(mesh: Triangles) -> Int[np.ndarray, "e 2"]:
    """Directed edges whose opposite is missing: empty exactly for a closed surface."""
    faces = mesh.t_pos_idx
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    n = len(mesh.v_pos)
    forward, backward = edges[:, 0] * n + edges[:, 1], edges[:, 1] * n + edges[:, 0]
    return edges[~np.isin(forward, backward)]


def corner_angles(mesh: Triangles) -> Float[np.ndarray, "f 3"]:
    """Interior angle at each corner, radians."""
    corners = mesh.corners()
    to_next = np.roll(corners, -1, axis=1) - corners
    to_previous = np.roll(corners, 1, axis=1) - corners
    dot = np.einsum("fci,fci->fc", to_next, to_previous)
    return np.arctan2(np.linalg.norm(np.cross(to_next, to_previous), axis=-1), dot)


def winding_number(mesh: Triangles, point: Float[np.ndarray, "3"]) -> float:
    """How often the surface winds around ``point``: 1 inside a closed surface, 0 outside.

    Sum of the signed solid angles of the faces (Van Oosterom and Strackee 1983).
    """
    a, b, c = np.moveaxis(mesh.corners() - point, 1, 0)
    la, lb, lc = (np.linalg.norm(x, axis=-1) for x in (a, b, c))
    numerator = np.einsum("fi,fi->f", a, np.cross(b, c))
    denominator = (
        la * lb * lc
        + np.einsum("fi,fi->f", a, b) * lc
        + np.einsum("fi,fi->f", b, c) * la
        + np.einsum("fi,fi->f", c, a) * lb
    )
    return float(np.arctan2(numerator, denominator).sum() / (2.0 * np.pi))
