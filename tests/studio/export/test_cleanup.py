"""Clean-up on meshes whose parts are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from renderers.isosurface import GridTets
from studio.export.cleanup import drop_flat, fill_holes, repair, weld
from studio.export.parts import drop_parts
from studio.export.simplify import decimate
from studio.export.triangles import (
    Triangles,
    boundary_edges,
    corner_angles,
    face_components,
    winding_number,
)
from tests.studio.export.meshes import ball, box, together


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


def test_fold_beside_a_closed_surface_leaves_it_closed():
    """A fin of two faces back to back, as decimation leaves them."""
    mesh = box((1.0, 1.0, 1.0))
    a, b, _ = mesh.t_pos_idx[0]
    fin = Triangles(
        np.concatenate([mesh.v_pos, [[1.0, 1.0, 1.0]]]),
        np.concatenate([mesh.t_pos_idx, [[a, b, 8], [b, a, 8]]]),
    )
    repaired, holes = repair(fin)
    assert len(boundary_edges(repaired)) == 0
    assert holes == 0
    assert len(repaired.t_pos_idx) == 12
    assert repaired.volume() == pytest.approx(1.0)


def split(mesh: Triangles, share: float) -> Triangles:
    """The first face in two, and the sliver between them and its uncut neighbour as the last."""
    a, b, c = mesh.t_pos_idx[0]
    middle = mesh.v_pos[a] + share * (mesh.v_pos[b] - mesh.v_pos[a])
    m = len(mesh.v_pos)
    parts = [[a, m, c], [m, b, c], [a, b, m]]
    return Triangles(
        np.concatenate([mesh.v_pos, middle[None]]), np.concatenate([mesh.t_pos_idx[1:], parts])
    )


def test_slivers_go_and_the_surface_stays_closed():
    sliver = split(box((1.0, 1.0, 1.0)), 0.3)
    repaired, holes = repair(sliver)
    assert len(boundary_edges(sliver)) == len(boundary_edges(repaired)) == 0
    assert holes == 0
    assert repaired.areas().min() > 0.1
    assert repaired.volume() == pytest.approx(1.0)


def test_slit_is_closed_by_the_faces_beside_it():
    """A corner of one side in the middle of an edge of the other."""
    whole = split(box((1.0, 1.0, 1.0)), 0.3)
    slit = Triangles(whole.v_pos, whole.t_pos_idx[:-1])
    assert len(boundary_edges(slit)) == 3
    repaired, holes = repair(slit)
    assert len(boundary_edges(repaired)) == 0
    assert holes == 1
    assert repaired.areas().min() > 0.1
    assert repaired.volume() == pytest.approx(1.0)


def test_outline_of_a_single_triangle_is_no_hole():
    lone = Triangles.of(np.eye(3), np.array([[0, 1, 2]]))
    repaired, holes = repair(lone)
    assert holes == 0
    assert len(repaired.t_pos_idx) == 1


def test_faces_without_area_in_files_are_dropped():
    v_pos = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0.5, -1e-60, 0]])
    faces = np.array([[0, 1, 2], [0, 3, 1]])
    assert len(drop_flat(Triangles.of(v_pos, faces)).t_pos_idx) == 1


def rough_ball(seed: int) -> Triangles:
    """A ball with waves, as rough as a hash grid's."""
    tets, generator = GridTets(40), torch.Generator().manual_seed(seed)
    x = tets.points
    sdf = x.norm(dim=1) - 0.6
    for _ in range(6):
        wave = 6.0 * torch.randn(3, generator=generator)
        sdf = sdf + 0.06 * torch.sin(x @ wave + 6.0 * torch.rand(1, generator=generator))
    sdf = torch.where((x.abs() > 0.97).any(1), 1.0, sdf)
    v_pos, faces = tets(sdf)
    mesh = Triangles.of(v_pos.double().numpy(), faces.numpy())
    return drop_parts(mesh, min_component=0.04)[0]


@pytest.mark.parametrize(("seed", "max_faces"), [(0, 400), (6, 1500), (6, 5000), (7, 5000)])
def test_decimated_surface_stays_closed(seed, max_faces):
    """These leave folds and slivers."""
    mesh = rough_ball(seed)
    small = decimate(mesh, max_faces)
    repaired, holes = repair(small)
    assert len(boundary_edges(weld(small))) == 0
    assert len(boundary_edges(repaired)) == 0
    assert holes == 0
    assert repaired.volume() == pytest.approx(small.volume(), rel=1e-6)


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
