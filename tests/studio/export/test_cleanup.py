"""Clean-up on meshes whose parts are known."""

from __future__ import annotations

import numpy as np
import pytest

from studio.export.cleanup import drop_degenerate, fill_holes, repair, weld
from studio.export.simplify import decimate
from studio.export.triangles import (
    Triangles,
    boundary_edges,
    corner_angles,
    face_components,
    winding_number,
)
from tests.studio.export.meshes import ball, together


def test_small_hole_is_filled_outwards():
    mesh = ball(1.0)
    keep = np.ones(len(mesh.t_pos_idx), dtype=bool)
    keep[np.any(mesh.t_pos_idx == 17, axis=1)] = False  # all faces around one vertex
    filled, count = fill_holes(mesh.keep_faces(keep))
    assert count == 1
    assert len(boundary_edges(filled)) == 0
    assert filled.volume() == pytest.approx(mesh.volume(), rel=0.01)


def test_large_opening_is_left_open():
    mesh = ball(1.0, subdivisions=4)
    centres = mesh.corners().mean(axis=1)
    half = mesh.keep_faces(centres[:, 2] > 0.0)
    opened, count = fill_holes(half)
    assert count == 0
    assert len(boundary_edges(opened)) == len(boundary_edges(half))


def test_weld_closes_a_triangle_soup():
    mesh = ball(1.0)
    soup = Triangles.of(mesh.corners().reshape(-1, 3), np.arange(3 * len(mesh.t_pos_idx)))
    assert len(boundary_edges(soup)) == 3 * len(mesh.t_pos_idx)
    welded = weld(soup)
    assert len(welded.v_pos) == len(mesh.v_pos)
    assert len(boundary_edges(welded)) == 0


def test_degenerate_and_doubled_faces_are_removed():
    v_pos = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, 0, 0]]
    faces = [[0, 1, 2], [1, 2, 0], [0, 1, 1], [0, 3, 1]]
    kept = drop_degenerate(Triangles.of(np.array(v_pos, float), np.array(faces)))
    assert len(kept.t_pos_idx) == 1
    assert len(kept.v_pos) == 3


def test_components_are_numbered_by_size():
    mesh = together(ball(0.2, (3, 0, 0), subdivisions=1), ball(1.0))
    labels = face_components(mesh)
    assert labels[-1] == 0
    assert labels[0] == 1


@pytest.mark.parametrize(("point", "expected"), [((0.2, 0.1, -0.3), 1.0), ((1.5, 0.0, 0.0), 0.0)])
def test_winding_number_tells_inside_from_outside(point, expected):
    assert winding_number(ball(1.0), np.array(point)) == pytest.approx(expected, abs=1e-9)


def test_corner_angles_sum_to_half_a_turn():
    np.testing.assert_allclose(corner_angles(ball(1.0)).sum(axis=1), np.pi)


def test_decimation_respects_the_cap_and_keeps_the_volume():
    mesh = ball(1.0, subdivisions=5)
    small = decimate(mesh, 2000)
    assert 1000 < len(small.t_pos_idx) <= 2000
    assert small.volume() == pytest.approx(mesh.volume(), rel=0.01)


def test_decimation_leaves_small_meshes_alone():
    mesh = ball(1.0)
    assert decimate(mesh, 100_000) is mesh


def test_decimation_works_far_from_the_origin():
    """The library computes in float32; a large offset must not cost digits."""
    mesh = ball(0.01, (1000.0, 0, 0), subdivisions=5)
    small, holes = repair(decimate(mesh, 1000))
    centred = Triangles(small.v_pos - small.v_pos.mean(axis=0), small.t_pos_idx)
    assert holes == 0
    assert centred.volume() == pytest.approx(ball(0.01).volume(), rel=0.03)
