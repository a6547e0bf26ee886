"""Mesh geometry against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh

from renderers.errors import ShapeError
from renderers.mesh import Mesh, signed_volume, vertex_normals
from tests.renderers.shapes import icosphere


def unit_box() -> Mesh:
    box = trimesh.creation.box(extents=(1, 2, 3))
    return Mesh(
        torch.tensor(box.vertices, dtype=torch.float32),
        torch.tensor(box.faces, dtype=torch.int64),
    )


def test_signed_volume_of_a_box_is_the_product_of_its_sides():
    assert unit_box().signed_volume().item() == pytest.approx(6.0, rel=1e-6)


def test_signed_volume_does_not_depend_on_the_origin():
    mesh = unit_box()
    moved = Mesh(mesh.v_pos + torch.tensor([3.0, -2.0, 5.0]), mesh.t_pos_idx)
    assert moved.signed_volume().item() == pytest.approx(6.0, rel=1e-5)


def test_signed_volume_changes_sign_with_the_winding():
    mesh = unit_box()
    assert signed_volume(mesh.v_pos, mesh.t_pos_idx.flip(1)).item() == pytest.approx(-6.0)


def test_signed_volume_of_a_sphere_approaches_the_ball():
    volume = icosphere(4, radius=0.5).signed_volume().item()
    assert volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.01)


def test_vertex_normals_of_a_sphere_point_outwards_and_have_unit_length():
    mesh = icosphere(3, radius=0.5)
    normals = mesh.vertex_normals()
    outwards = mesh.v_pos / mesh.v_pos.norm(dim=1, keepdim=True)
    assert (normals * outwards).sum(1).min() > 0.999
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(mesh.n_vertices))


def test_vertex_normals_rotate_with_the_mesh():
    mesh = icosphere(1)
    v_pos = mesh.v_pos * torch.tensor([1.0, 2.0, 0.5])
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    rotation = rotation * torch.linalg.det(rotation)
    straight = vertex_normals(v_pos, mesh.t_pos_idx)
    turned = vertex_normals(v_pos @ rotation.T, mesh.t_pos_idx)
    torch.testing.assert_close(turned, straight @ rotation.T, atol=1e-5, rtol=1e-5)


def test_vertex_normal_gradients_match_finite_differences():
    mesh = icosphere(0)
    v_pos = mesh.v_pos.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, mesh.t_pos_idx), v_pos)


def test_a_vertex_without_area_gets_an_upward_normal_and_finite_gradients():
    v_pos = torch.zeros(4, 3, requires_grad=True)
    normals = vertex_normals(v_pos, torch.tensor([[0, 1, 2]]))
    normals.sum().backward()
    assert torch.equal(normals, torch.tensor([[0.0, 0.0, 1.0]]).expand(4, 3))
    assert torch.isfinite(v_pos.grad).all()


def test_face_normals_have_unit_length_for_tiny_faces():
    mesh = icosphere(2, radius=1e-4)
    torch.testing.assert_close(mesh.face_normals().norm(dim=1), torch.ones(mesh.n_faces))


def test_texture_coordinates_without_faces_are_refused():
    mesh = icosphere(0)
    with pytest.raises(ShapeError, match="v_tex and t_tex_idx must be given together"):
        Mesh(mesh.v_pos, mesh.t_pos_idx, v_tex=torch.zeros(4, 2))


@pytest.mark.wrong_shapes
def test_vertex_colours_of_the_wrong_length_are_refused():
    mesh = icosphere(0)
    with pytest.raises(ShapeError, match=r"v_rgb has shape \(5, 3\), expected \[12, 3\]"):
        Mesh(mesh.v_pos, mesh.t_pos_idx, v_rgb=torch.zeros(5, 3))


def test_to_and_detach_keep_every_array():
    mesh = icosphere(0)
    full = Mesh(
        mesh.v_pos.requires_grad_(),
        mesh.t_pos_idx,
        v_tex=torch.rand(12, 2),
        t_tex_idx=mesh.t_pos_idx,
        v_rgb=torch.rand(12, 3),
        texture=torch.rand(4, 4, 3),
    )
    copy = full.to("cpu").detach()
    assert not copy.v_pos.requires_grad
    assert copy.texture is not None
    assert torch.equal(copy.texture, full.texture)
    assert torch.equal(copy.t_tex_idx, full.t_tex_idx)
