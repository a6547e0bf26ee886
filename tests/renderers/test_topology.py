"""The edge tables of both implementations: equal entry by entry, whatever the faces."""

from __future__ import annotations

import pytest
import torch

from renderers.backends import numba_topology, torch_topology
from renderers.isosurface import GridTets
from tests.renderers.shapes import blob

SHEET = torch.tensor([[0, 1, 2], [2, 1, 3]])
BOOK = torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4], [1, 0, 5], [0, 1, 6]])
"""Five pages on one spine, which becomes three edges."""


def soup(seed: int) -> torch.Tensor:
    """Random faces on few vertices: shared, repeated and degenerate edges."""
    return torch.randint(0, 9, (120, 3), generator=torch.Generator().manual_seed(seed))


def marched() -> torch.Tensor:
    tets = GridTets(12)
    return tets(tets.points.norm(dim=1) - 0.6)[1]


@pytest.mark.parametrize(
    "tri", [SHEET, BOOK, soup(0), soup(1), blob(2).t_pos_idx, marched(), SHEET[:0]]
)
def test_numba_and_torch_make_the_same_table(tri):
    fast, reference = numba_topology.edge_table(tri), torch_topology.edge_table(tri)
    for mine, theirs in zip(fast, reference, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_a_closed_surface_has_three_edges_for_two_faces():
    tri = marched()
    vertices, faces, _, consistent = numba_topology.edge_table(tri)
    assert len(vertices) == 3 * len(tri) // 2
    assert (faces >= 0).all()
    assert consistent.all()


def test_a_spine_with_five_pages_is_three_edges():
    vertices, faces, _, consistent = numba_topology.edge_table(BOOK)
    spine = (vertices.sort(dim=1).values == torch.tensor([0, 1])).all(1)
    assert faces[spine].tolist() == [[0, 1], [2, 3], [4, -1]]
    assert consistent[spine].all()
