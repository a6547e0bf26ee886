"""Fewer leaves, larger: what decimation cannot do for thousands of separate small pieces.

Trees and hedges are clouds of cards with a leaf image. Decimation would collapse each card to
nothing, so a random share of the pieces is kept instead, enlarged to cover the same area, as in
Cook, Halstead, Planck and Ryu, "Stochastic simplification of aggregate detail" (2007).

    rest, leaves = split_foliage(mesh, faces=4000)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from scenes.objects.obj_reader import SourceMesh

__all__ = ["split_foliage"]

MAX_PIECE = 60
"""Pieces with more faces than this are branches or bodies."""
LEAF_SHARE = 0.75
"""Share of the faces that the leaves get."""
MAX_ENLARGED = 4.0


def split_foliage(mesh: SourceMesh, *, faces: int) -> tuple[np.ndarray, SourceMesh]:
    """Separate what decimation can handle from small pieces, of which fewer remain.

    Args:
        mesh: a welded mesh.
        faces: how many faces the whole may have in the end.

    Returns:
        The faces ``[n]`` of ``mesh`` that are left for decimation, and ``mesh`` with its vertices
        moved and only the leaves that stay. A mesh whose small pieces fit has no leaves.
    """
    tri = mesh.t_pos_idx
    size = len(mesh.v_pos)
    one, other = tri[:, :2].reshape(-1), tri[:, 1:].reshape(-1)
    graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(size, size))
    piece_of_vertex = connected_components(graph, directed=False)[1]
    piece = piece_of_vertex[tri[:, 0]]
    count = np.bincount(piece)
    small = count <= MAX_PIECE
    total = int(count[small].sum())
    everything = np.arange(len(tri))
    if total <= faces:
        return everything, replace(mesh, t_pos_idx=tri[:0], t_tex_idx=tri[:0])
    bodies = everything[~small[piece]]
    budget = min(faces * LEAF_SHARE, total) if len(bodies) else faces
    order = np.random.default_rng(0).permutation(np.nonzero(small)[0])
    kept_pieces = order[np.cumsum(count[order]) <= budget]
    kept = np.isin(piece, kept_pieces)
    scale = min(np.sqrt(total / max(int(kept.sum()), 1)), MAX_ENLARGED)
    centre = np.stack(
        [np.bincount(piece_of_vertex, mesh.v_pos[:, k]) for k in range(3)], 1
    ) / np.bincount(piece_of_vertex)[:, None]  # fmt: skip
    about = centre[piece_of_vertex]
    return bodies, replace(
        mesh,
        v_pos=about + (mesh.v_pos - about) * scale,
        t_pos_idx=tri[kept],
        t_tex_idx=mesh.t_tex_idx[kept],
        face_material=mesh.face_material[kept],
    )
