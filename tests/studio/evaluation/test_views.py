"""Pictures for the judge: framing, colours and directions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from renderers.errors import EmptyGeometry
from renderers.mesh import Mesh
from scenes.toybox.catalog import KIND_NAMES
from scenes.toybox.objects import OBJECT_RADIUS, ObjectSpec, build_object
from studio.errors import Diverged
from studio.evaluation.judge import FACELESS_KINDS, SYMMETRIC_KINDS
from studio.evaluation.symmetry import MIN_DIFFERENCE, front_back_difference
from studio.evaluation.views import eval_cameras, normalized, render_mesh, render_toy
from tests.studio.evaluation.shapes import colored_mesh

DUCK = ObjectSpec("duck", "blue", "plain", 1)


def quad(x: float) -> Mesh:
    """A square of side 2 in the plane of that x, facing +x."""
    corners = torch.tensor([[x, -1.0, -1.0], [x, 1.0, -1.0], [x, 1.0, 1.0], [x, -1.0, 1.0]])
    return Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_the_first_camera_stands_in_front_and_azimuth_grows():
    cameras = eval_cameras(4)
    assert cameras.azimuth_deg.tolist() == [0, 90, 180, 270]
    front, side = cameras.position[0], cameras.position[1]
    assert front[0] > 0
    assert front[1] == pytest.approx(0, abs=1e-6)
    assert side[1] > 0


def test_normalized_centres_and_scales_what_the_faces_use():
    mesh = quad(3.0)
    far = torch.tensor([[100.0, 0.0, 0.0]])  # used by no face
    mesh = replace(mesh, v_pos=torch.cat([mesh.v_pos + 5.0, far]))
    used = normalized(mesh).v_pos[:4]
    assert used.norm(dim=1).tolist() == pytest.approx([OBJECT_RADIUS] * 4)
    assert (used.amin(0) + used.amax(0)).abs().max() < 1e-6


def test_normalized_refuses_a_mesh_without_faces():
    with pytest.raises(EmptyGeometry, match="no faces"):
        normalized(Mesh(torch.zeros(3, 3), torch.zeros(0, 3, dtype=torch.int64)))


def test_mesh_with_vertices_that_are_no_numbers_is_refused():
    v_pos = torch.eye(3)
    v_pos[1, 1] = torch.nan
    with pytest.raises(Diverged, match="1 of 3 vertices"):
        normalized(Mesh(v_pos, torch.tensor([[0, 1, 2]])))


def test_vertex_colours_are_shown_unlit_over_white():
    mesh = replace(quad(0.0), v_rgb=torch.tensor([0.2, 0.4, 0.6]).expand(4, 3))
    views = render_mesh(normalized(mesh), eval_cameras(1, elevation_deg=0.0))
    assert views.rgb[0, 32, 32].tolist() == pytest.approx([0.2, 0.4, 0.6], abs=1e-5)
    assert views.rgb[0, 0, 0].tolist() == [1.0, 1.0, 1.0]
    assert (views.mask[0, 32, 32], views.mask[0, 0, 0]) == (1.0, 0.0)


def test_a_texture_is_shown_upright_and_not_mirrored():
    # Rows of the texture from the top, columns from the left as seen from +x.
    picture = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]], [[0, 0, 1.0], [1.0, 1.0, 0]]])
    uv = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    mesh = quad(0.0)
    mesh = replace(mesh, v_tex=uv, t_tex_idx=mesh.t_pos_idx, texture=picture)
    rgb = render_mesh(normalized(mesh), eval_cameras(1, elevation_deg=0.0)).rgb[0]
    assert rgb[18, 18].tolist() == pytest.approx([1, 0, 0], abs=0.05)
    assert rgb[18, 45].tolist() == pytest.approx([0, 1, 0], abs=0.05)
    assert rgb[45, 18].tolist() == pytest.approx([0, 0, 1], abs=0.05)
    assert rgb[45, 45].tolist() == pytest.approx([1, 1, 0], abs=0.05)


def test_a_mesh_and_the_toybox_show_the_same_silhouette():
    toy = build_object(DUCK)
    mesh = render_mesh(normalized(colored_mesh(toy)), eval_cameras(4))
    true = render_toy(toy, eval_cameras(4))
    assert (mesh.mask - true.mask).abs().mean() < 2e-3


def test_the_lists_of_symmetric_and_faceless_kinds_are_what_is_measured():
    found = {kind: front_back_difference(kind) for kind in KIND_NAMES}
    symmetric = {kind for kind in KIND_NAMES if found[kind].plain < MIN_DIFFERENCE}
    alike = {kind for kind in KIND_NAMES if found[kind].mirrored < MIN_DIFFERENCE}
    assert symmetric == set(SYMMETRIC_KINDS)
    assert alike - symmetric == set(FACELESS_KINDS)
    assert all(found[kind].mirrored < 0.001 for kind in FACELESS_KINDS)
