"""Mesh penalties against closed forms."""

from __future__ import annotations

import pytest
import torch

from renderers.antialias import Topology
from renderers.mesh import Mesh
from renderers.mesh_regularizers import laplacian_loss, normal_consistency_loss
from tests.renderers.shapes import blob, icosphere


def flat_grid(n: int) -> Mesh:
    """A plane of 2 (n - 1)^2 faces with unit spacing."""
    y, x = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    v_pos = torch.stack([x, y, torch.zeros_like(x)], -1).view(-1, 3).float()
    index = torch.arange(n * n).view(n, n)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    tri = torch.cat(
        [torch.stack([a, b, c], -1).view(-1, 3), torch.stack([a, c, d], -1).view(-1, 3)]
    )
    return Mesh(v_pos, tri)


def test_a_plane_is_perfectly_consistent():
    mesh = flat_grid(5)
    loss = normal_consistency_loss(mesh.vertex_normals(), Topology(mesh.t_pos_idx))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_consistency_of_opposite_normals_is_two():
    topology = Topology(torch.tensor([[0, 1, 2]]))
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    # One edge agrees, two are opposite: (0 + 2 + 2) / 3.
    assert normal_consistency_loss(normals, topology).item() == pytest.approx(4 / 3)


def test_consistency_falls_with_the_square_of_the_edge_length_on_a_sphere():
    losses = []
    for subdivisions in (2, 3):
        mesh = icosphere(subdivisions)
        losses.append(normal_consistency_loss(mesh.vertex_normals(), Topology(mesh.t_pos_idx)))
    assert (losses[0] / losses[1]).item() == pytest.approx(4.0, rel=0.1)


def test_consistency_on_a_sphere_is_that_of_its_chords():
    """Normals of a sphere are its positions: 1 - cos = h^2 / (2 R^2) for a chord h."""
    mesh, radius = icosphere(4, radius=0.7), 0.7
    topology = Topology(mesh.t_pos_idx)
    a, b = topology.vertices.unbind(1)
    square = (mesh.v_pos[a] - mesh.v_pos[b]).square().sum(1).mean().item()
    consistency = normal_consistency_loss(mesh.vertex_normals(), topology).item()
    assert consistency == pytest.approx(square / (2 * radius**2), rel=0.01)


def test_an_octahedron_has_both_values_of_a_sphere_exactly():
    """Chords of sqrt(2) R: 1 - cos = 1, and the neighbours' mean is the centre, R below."""
    radius = 0.6
    axes = torch.eye(3) * radius
    v_pos = torch.cat([axes, -axes])
    octants = [(x, y, z) for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    flipped = [sum(i > 2 for i in corner) % 2 for corner in octants]
    tri = torch.tensor([c[::-1] if f else c for c, f in zip(octants, flipped, strict=True)])
    topology = Topology(tri)
    assert topology.n_edges == 12
    normals = Mesh(v_pos, tri).vertex_normals()
    assert normal_consistency_loss(normals, topology).item() == pytest.approx(1.0, abs=1e-6)
    assert laplacian_loss(v_pos, topology).item() == pytest.approx(radius, rel=1e-6)


def test_the_laplacian_inside_a_regular_grid_is_zero():
    mesh = flat_grid(7)
    v_pos = mesh.v_pos.clone().requires_grad_()
    loss = laplacian_loss(v_pos, Topology(mesh.t_pos_idx)) * mesh.n_vertices
    # Only the border contributes; moving an inner vertex by h adds h, and h / 6 per neighbour.
    lifted = mesh.v_pos.clone()
    lifted[24, 2] = 0.3
    change = laplacian_loss(lifted, Topology(mesh.t_pos_idx)) * mesh.n_vertices - loss
    assert change.item() == pytest.approx(0.3 + 6 * 0.3 / 6, rel=1e-4)


def test_the_laplacian_of_a_regular_tetrahedron_is_known():
    v_pos = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    topology = Topology(torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]]))
    # The mean of the other three corners is -v / 3, so each distance is 4 / 3 |v|.
    assert laplacian_loss(v_pos, topology).item() == pytest.approx(4 / 3 * 3**0.5, rel=1e-6)


def test_the_laplacian_ignores_position_and_orientation_and_scales_with_size():
    mesh = blob(2)
    topology = Topology(mesh.t_pos_idx)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    moved = 2 * mesh.v_pos @ rotation.T + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(
        laplacian_loss(moved, topology), 2 * laplacian_loss(mesh.v_pos, topology), rtol=1e-4, atol=0
    )


def test_gradients_match_finite_differences():
    mesh = icosphere(0)
    topology = Topology(mesh.t_pos_idx)
    noise = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v_pos = (mesh.v_pos.double() + 0.1 * noise).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: laplacian_loss(v, topology), v_pos)
    assert torch.autograd.gradcheck(
        lambda v: normal_consistency_loss(Mesh(v, mesh.t_pos_idx).vertex_normals(), topology), v_pos
    )


def test_descending_on_both_smooths_a_bumpy_sphere():
    mesh = icosphere(2)
    topology = Topology(mesh.t_pos_idx)
    noise = torch.randn(mesh.n_vertices, 3, generator=torch.Generator().manual_seed(0))
    v_pos = (mesh.v_pos + 0.03 * noise).requires_grad_()
    adam = torch.optim.Adam([v_pos], lr=3e-3)

    def roughness():
        normals = Mesh(v_pos, mesh.t_pos_idx).vertex_normals()
        return normal_consistency_loss(normals, topology) + laplacian_loss(v_pos, topology)

    start = roughness().item()
    for _ in range(30):
        adam.zero_grad()
        roughness().backward()
        adam.step()
    assert roughness().item() < 0.6 * start


def test_a_mesh_without_faces_costs_nothing():
    topology = Topology(torch.zeros(0, 3, dtype=torch.int64))
    v_pos = torch.rand(4, 3, requires_grad=True)
    loss = laplacian_loss(v_pos, topology) + normal_consistency_loss(v_pos, topology)
    loss.backward()
    assert loss.item() == 0
    assert (v_pos.grad == 0).all()
