"""Marching tetrahedra against closed forms, and the topology of what comes out."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch import Tensor

from renderers.errors import EmptyGeometry, ShapeError
from renderers.isosurface import GridTets
from renderers.mesh import Mesh, signed_volume


def sphere_sdf(points: Tensor, radius: float) -> Tensor:
    return points.norm(dim=1) - radius


def random_blobs(tets: GridTets, seed: int) -> Tensor:
    """Noise inside the grid, positive on its border: every case of the table, many components."""
    side = tets.resolution + 1
    noise = torch.randn(side, side, side, generator=torch.Generator().manual_seed(seed))
    sdf = torch.ones_like(noise)
    sdf[1:-1, 1:-1, 1:-1] = noise[1:-1, 1:-1, 1:-1]
    return sdf.view(-1)


def as_trimesh(v_pos: Tensor, faces: Tensor) -> trimesh.Trimesh:
    return trimesh.Trimesh(v_pos.detach().numpy(), faces.numpy(), process=False)


def test_a_sphere_at_32_cubes_has_the_volume_of_the_ball_and_outward_faces():
    tets = GridTets(32, radius=0.5)
    v_pos, faces = tets(sphere_sdf(tets.points, 0.3))
    assert signed_volume(v_pos, faces).item() == pytest.approx(4 / 3 * math.pi * 0.3**3, rel=0.03)
    normals = Mesh(v_pos, faces).vertex_normals()
    outwards = torch.nn.functional.normalize(v_pos, dim=1)
    assert (normals * outwards).sum(1).min() > 0.9


def test_a_sphere_is_watertight_with_the_topology_of_a_sphere():
    tets = GridTets(16)
    mesh = as_trimesh(*tets(sphere_sdf(tets.points, 0.6)))
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 2


def test_a_torus_has_a_hole():
    tets = GridTets(24)
    p = tets.points
    sdf = ((p[:, :2].norm(dim=1) - 0.6).square() + p[:, 2].square()).sqrt() - 0.25
    mesh = as_trimesh(*tets(sdf))
    assert mesh.is_watertight
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.6 * 0.25**2, rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_a_closed_and_consistently_oriented_surface(seed):
    tets = GridTets(9)
    mesh = as_trimesh(*tets(random_blobs(tets, seed)))
    assert len(mesh.faces) > 1000
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0


def test_every_crossing_edge_has_one_vertex_and_every_vertex_a_face():
    tets = GridTets(8)
    v_pos, faces = tets(random_blobs(tets, 5))
    assert torch.equal(torch.unique(faces), torch.arange(len(v_pos)))
    assert len(torch.unique(v_pos, dim=0)) == len(v_pos)


def test_swapping_inside_and_outside_turns_the_faces():
    tets = GridTets(12)
    sdf = sphere_sdf(tets.points, 0.61)
    solid, cavity = signed_volume(*tets(sdf)), signed_volume(*tets(-sdf))
    torch.testing.assert_close(solid, -cavity, rtol=1e-4, atol=0)


def test_vertices_of_a_linear_field_lie_on_its_plane():
    tets = GridTets(7)
    normal = torch.tensor([0.48, -0.6, 0.64])
    v_pos, faces = tets(tets.points @ normal - 0.13)
    torch.testing.assert_close(v_pos @ normal, torch.full((len(v_pos),), 0.13), atol=1e-5, rtol=0)
    direction = Mesh(v_pos, faces).face_normals()
    torch.testing.assert_close(direction, normal.expand_as(direction), atol=1e-3, rtol=0)


def test_the_volume_gradient_is_the_area_of_the_sphere():
    tets = GridTets(32)
    radius = torch.tensor(0.6, requires_grad=True)
    signed_volume(*tets(tets.points.norm(dim=1) - radius)).backward()
    assert radius.grad.item() == pytest.approx(4 * math.pi * 0.6**2, rel=0.03)


def test_gradients_match_finite_differences():
    tets = GridTets(3)
    sdf = random_blobs(tets, 1).double().requires_grad_()
    raw = torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    raw.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, r: tets(s, tets.bounded_offsets(r))[0], (sdf, raw))


def test_a_uniform_offset_moves_the_mesh():
    tets = GridTets(10)
    sdf = sphere_sdf(tets.points, 0.55)
    shift = torch.tensor([0.02, -0.01, 0.03])
    still, faces = tets(sdf)
    moved, same_faces = tets(sdf, shift.expand_as(tets.points))
    torch.testing.assert_close(moved, still + shift)
    assert torch.equal(faces, same_faces)


def test_bounded_offsets_stay_within_half_a_cell():
    tets = GridTets(10, radius=2.0)
    raw = 100 * torch.randn(len(tets.points), 3, generator=torch.Generator().manual_seed(0))
    assert tets.bounded_offsets(raw).abs().max().item() == pytest.approx(0.2)
    assert tets.bounded_offsets(raw, reach=0.25).abs().max().item() == pytest.approx(0.1)


def test_points_span_the_box_and_scale_the_mesh():
    tets = GridTets(4, radius=1.5)
    assert tets.points.shape == (125, 3)
    assert tets.points.min() == -1.5
    assert tets.points.max() == 1.5
    assert tets.cell_size == pytest.approx(0.75)


def test_meshes_and_gradients_are_bit_identical_from_run_to_run():
    tets = GridTets(16)

    def run():
        sdf = sphere_sdf(tets.points, 0.6).requires_grad_()
        v_pos, faces = tets(sdf)
        return v_pos, faces, torch.autograd.grad(v_pos.square().sum(), sdf)[0]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def test_the_grid_is_not_part_of_a_checkpoint():
    assert GridTets(4).state_dict() == {}


@pytest.mark.parametrize(("sign", "where"), [(1, "outside"), (-1, "inside")])
def test_a_field_without_a_surface_is_refused_with_its_range(sign, where):
    tets = GridTets(2)
    sdf = sign * torch.linspace(0.25, 3.5, 27)
    low, high = (0.25, 3.5) if sign > 0 else (-3.5, -0.25)
    with pytest.raises(EmptyGeometry) as error:
        tets(sdf)
    assert str(error.value) == (
        f"No surface: the signed distance is {low}..{high}, so all 27 grid points are {where}; "
        "expected both signs. Shift the threshold into that range, or start from a field with a "
        "surface."
    )


def test_a_field_with_nan_is_refused():
    tets = GridTets(2)
    sdf = torch.linspace(-1, 1, 27)
    sdf[4] = float("nan")
    with pytest.raises(EmptyGeometry, match="holds NaN or infinity"):
        tets(sdf)


def test_a_field_of_another_resolution_is_refused():
    with pytest.raises(ShapeError, match=r"sdf has shape \(64,\), expected \[27\]"):
        GridTets(2)(torch.zeros(64))


@pytest.mark.parametrize(("resolution", "radius"), [(0, 1.0), (513, 1.0), (8, 0.0)])
def test_impossible_grids_are_refused(resolution, radius):
    with pytest.raises(ShapeError, match=f"resolution {resolution} and radius {radius}"):
        GridTets(resolution, radius)


def test_unbounded_offsets_with_a_reach_are_the_bounded_ones():
    tets = GridTets(6)
    sdf = random_blobs(tets, 3)
    raw = torch.randn(len(tets.points), 3, generator=torch.Generator().manual_seed(1))
    expected = tets(sdf, tets.bounded_offsets(raw, reach=0.3))
    found = tets(sdf, raw, reach=0.3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
