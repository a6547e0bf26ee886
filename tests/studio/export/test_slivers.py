"""Slivers of both kinds, put into surfaces whose shape is known."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from studio.export.folds import drop_doubled
from studio.export.slivers import remove_slivers
from studio.export.triangles import Triangles, boundary_edges
from tests.studio.export.meshes import ball, box

SQUARE = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 0]])


def with_cap(mesh: Triangles, face: int, share: float, height: float) -> Triangles:
    """A face in two, with a cap between them and the face across their common side."""
    a, b, c = mesh.t_pos_idx[face]
    start, end = mesh.v_pos[a], mesh.v_pos[b]
    middle = start + share * (end - start) + height * (mesh.v_pos[c] - start)
    m, others = len(mesh.v_pos), np.delete(mesh.t_pos_idx, face, axis=0)
    return Triangles(
        np.concatenate([mesh.v_pos, middle[None]]),
        np.concatenate([others, [[a, m, c], [m, b, c], [a, b, m]]]),
    )


def with_needles(mesh: Triangles, face: int, length: float) -> Triangles:
    """Two needles back to back, from the middle of a face's first side to both corners beside."""
    a, b, c = mesh.t_pos_idx[face]
    both = np.isin(mesh.t_pos_idx, (a, b)).sum(axis=1) == 2
    across = int(np.setdiff1d(np.flatnonzero(both), face)[0])
    d = int(np.setdiff1d(mesh.t_pos_idx[across], (a, b))[0])
    middle, along = mesh.v_pos[[a, b]].mean(axis=0), mesh.v_pos[b] - mesh.v_pos[a]
    m, o = len(mesh.v_pos), len(mesh.v_pos) + 1
    parts = [[a, m, c], [m, o, c], [o, b, c], [b, o, d], [o, m, d], [m, a, d]]
    return Triangles(
        np.concatenate([mesh.v_pos, [middle, middle + length * along]]),
        np.concatenate([np.delete(mesh.t_pos_idx, [face, across], axis=0), parts]),
    )


def flatness(mesh: Triangles) -> np.ndarray:
    """Height over the longest side."""
    corners = mesh.corners()
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(axis=1)
    return 2.0 * mesh.areas() / longest**2


def assert_sound(mesh: Triangles, volume: float) -> None:
    assert len(boundary_edges(mesh)) == 0
    assert flatness(mesh).min() > 1e-5
    assert mesh.volume() == pytest.approx(volume, rel=1e-4)
    assert np.array_equal(drop_doubled(mesh).t_pos_idx, mesh.t_pos_idx)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
@pytest.mark.parametrize("height", [0.0, 1e-9, -1e-9, 5e-6])
def test_cap_is_flipped_away_and_no_vertex_moves(share, height):
    mesh = with_cap(box((1.0, 1.0, 1.0)), 3, share, height)
    assert flatness(mesh).min() <= 1e-5
    flipped = remove_slivers(mesh)
    assert_sound(flipped, 1.0)
    assert len(flipped.t_pos_idx) == len(mesh.t_pos_idx)
    assert np.array_equal(flipped.v_pos, mesh.v_pos)


def test_needle_is_collapsed():
    mesh = with_needles(ball(), 11, 4e-6)
    assert flatness(mesh).min() <= 1e-5
    collapsed = remove_slivers(mesh)
    assert_sound(collapsed, ball().volume())
    assert len(collapsed.t_pos_idx) == len(mesh.t_pos_idx) - 2


def test_many_slivers_side_by_side_and_in_each_other_go():
    rng = np.random.default_rng(0)
    for make in (lambda: box((1.0, 2.0, 1.0)), lambda: ball(subdivisions=2)):
        mesh = make()
        for _ in range(12):
            mesh = with_cap(mesh, int(rng.integers(len(mesh.t_pos_idx))), rng.uniform(0.1, 0.9), 0)
        for face in rng.integers(len(mesh.t_pos_idx), size=3):
            mesh = with_needles(mesh, int(face), 3e-6)
        assert len(boundary_edges(mesh)) == 0
        assert_sound(remove_slivers(mesh), make().volume())


def test_thin_faces_that_are_no_slivers_stay():
    cone = trimesh.creation.cone(0.001, 1.0, sections=24)
    mesh = Triangles.of(cone.vertices, cone.faces)
    assert flatness(mesh).min() < 1e-3
    assert remove_slivers(mesh) is mesh


def test_cap_on_a_border_leaves_the_border_where_it_looks_to_be():
    """Cap (0, 4, 2) lies on the border from 0 to 2 of the triangles beside its other sides."""
    mesh = Triangles.of(SQUARE, np.array([[0, 1, 4], [1, 2, 4], [0, 4, 2]]))
    kept = remove_slivers(mesh)
    assert kept.t_pos_idx.tolist() == [[0, 1, 3], [1, 2, 3]]
    assert kept.areas().sum() == pytest.approx(0.5)


def test_no_faces_have_no_slivers():
    mesh = Triangles.of(SQUARE, np.zeros((0, 3)))
    assert len(remove_slivers(mesh).t_pos_idx) == 0
