"""Normals and the splitting of vertices."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from studio.export import shading
from studio.export.cleanup import repair
from studio.export.shading import corner_normals, flatten
from studio.export.simplify import decimate
from studio.export.triangles import Triangles
from studio.export.unwrap import patch_atlas


def box() -> Triangles:
    mesh = trimesh.creation.box((1.0, 2.0, 3.0))
    return Triangles.of(mesh.vertices, mesh.faces)


def ball(subdivisions: int) -> Triangles:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return Triangles.of(mesh.vertices, mesh.faces)


def test_box_keeps_hard_edges():
    flat = flatten(box(), crease_deg=40.0)
    assert len(flat.position) == 24
    assert set(np.abs(flat.normal).max(axis=1).round(5)) == {1.0}


def test_wide_crease_angle_makes_the_box_smooth():
    flat = flatten(box(), crease_deg=180.0)
    assert len(flat.position) == 8
    outward = np.einsum("vi,vi->v", flat.normal, np.sign(flat.position))
    assert outward.min() > 1.0


@pytest.mark.parametrize("make", [box, lambda: ball(2)])
def test_crease_angle_of_zero_gives_every_face_its_own_normal(make):
    mesh = make()
    own = mesh.area_vectors() / mesh.areas()[:, None]
    normals = corner_normals(mesh, crease_deg=0.0)
    np.testing.assert_allclose(normals, np.repeat(own[:, None], 3, axis=1), atol=1e-6)


def test_ball_is_smooth_and_its_normals_are_its_radii():
    mesh = ball(3)
    flat = flatten(mesh, crease_deg=40.0)
    assert len(flat.position) == len(mesh.v_pos)
    np.testing.assert_allclose(flat.normal, flat.position, atol=0.01)


def test_normals_have_unit_length_even_at_cancelling_faces():
    """Two faces back to back: the mean of their normals is zero."""
    v_pos = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    mesh = Triangles.of(v_pos, np.array([[0, 1, 2], [0, 2, 1]]))
    normals = corner_normals(mesh, crease_deg=180.0)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0)


@pytest.mark.parametrize("pairs", [1, 7, 50])
def test_normals_are_the_same_whatever_the_number_of_pairs_at_a_time(pairs, monkeypatch):
    cone = trimesh.creation.cone(0.5, 1.0, sections=40)
    mesh = Triangles.of(cone.vertices, cone.faces)
    whole = corner_normals(mesh, crease_deg=40.0)
    monkeypatch.setattr(shading, "PAIRS", pairs)
    assert np.array_equal(corner_normals(mesh, crease_deg=40.0), whole)


def test_decimated_ball_has_no_stray_normals():
    """Slivers left by decimation must not shade as specks."""
    mesh, _ = repair(decimate(ball(6), 5000))
    normals = corner_normals(mesh, crease_deg=40.0)
    radial = mesh.corners() / np.linalg.norm(mesh.corners(), axis=-1, keepdims=True)
    cosine = np.einsum("fci,fci->fc", normals, radial)
    assert cosine.min() > np.cos(np.radians(12.0))


def test_texture_seams_split_vertices_and_keep_positions():
    mesh = ball(2)
    atlas = patch_atlas(len(mesh.t_pos_idx), texture_size=512)
    flat = flatten(mesh, crease_deg=40.0, atlas=atlas)
    assert len(flat.position) == 3 * len(mesh.t_pos_idx)
    np.testing.assert_allclose(flat.position[flat.faces], mesh.corners(), atol=1e-6)
    assert flat.uv is not None
    np.testing.assert_allclose(flat.uv[flat.faces], atlas.uv[atlas.t_tex_idx], atol=1e-6)


def test_vertex_colours_follow_their_vertices():
    mesh = box()
    v_rgb = np.linspace(0.0, 1.0, 24).reshape(8, 3)
    flat = flatten(mesh, crease_deg=40.0, v_rgb=v_rgb)
    assert flat.rgb is not None
    np.testing.assert_allclose(flat.rgb[flat.faces], v_rgb[mesh.t_pos_idx], atol=1e-6)


@pytest.mark.parametrize("crease_deg", [0.0, 40.0, 180.0])
def test_faces_are_the_same_triangles(crease_deg):
    mesh = ball(1)
    flat = flatten(mesh, crease_deg=crease_deg)
    np.testing.assert_allclose(flat.position[flat.faces], mesh.corners(), atol=1e-6)
