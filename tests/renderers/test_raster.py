"""Visibility, perspective-correct weights and interpolation, and numba against torch."""

from __future__ import annotations

import pytest
import torch

from renderers.errors import BackendMissing, ShapeError
from renderers.mesh import Mesh
from renderers.raster import interpolate, rasterize, to_clip
from tests.renderers.shapes import blob, icosphere, screen_triangle, views

BACKENDS = ["numba", "torch"]
ONE_FACE = torch.tensor([[0, 1, 2]])


def clip(mesh: Mesh, cameras) -> torch.Tensor:
    return to_clip(mesh.v_pos, cameras.mvp())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_face_covers_exactly_the_pixel_centres_inside_it(backend):
    size = (6, 8)
    pos = screen_triangle([[0.6, 0.6], [6.6, 0.6], [0.6, 5.6]], size)[None]
    raster = rasterize(pos, ONE_FACE, size, backend=backend)
    row, col = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    inside = (col >= 0.6) & (row >= 0.6) & ((col - 0.6) / 6 + (row - 0.6) / 5 <= 1)
    assert torch.equal(raster.tri_id[0] > 0, inside)
    assert inside.sum() > 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_background_has_id_zero_depth_one_and_zero_attributes(backend):
    size = (4, 4)
    pos = screen_triangle([[0, 0], [2, 0], [0, 2]], size)[None]
    raster = rasterize(pos, ONE_FACE, size, backend=backend)
    value = interpolate(torch.ones(3, 2), raster, ONE_FACE, backend=backend)
    far = raster.tri_id == 0
    assert far.any()
    assert (raster.zw[far] == 1).all()
    assert (value[far] == 0).all()
    torch.testing.assert_close(value[~far], torch.ones_like(value[~far]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_face_wins_whatever_the_order(backend):
    size = (8, 8)
    corners = [[-20, -20], [40, -20], [-20, 40]]
    depths = [0.3, -0.2, 0.7]
    pos = torch.cat([screen_triangle(corners, size, z) for z in depths])[None]
    tri = torch.arange(9).view(3, 3)
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        raster = rasterize(pos, tri[order], size, backend=backend)
        assert (raster.tri_id == order.index(1) + 1).all()
        torch.testing.assert_close(raster.zw, torch.full_like(raster.zw, -0.2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_depths_the_lowest_face_wins(backend):
    size = (8, 8)
    face = screen_triangle([[-20, -20], [40, -20], [-20, 40]], size)
    raster = rasterize(
        torch.cat([face, face])[None], torch.tensor([[3, 4, 5], [0, 1, 2]]), size, backend=backend
    )
    assert (raster.tri_id == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_faces_that_share_edges_leave_no_holes(backend, generator):
    n, size = 24, (61, 67)
    steps = torch.linspace(-1.1, 1.1, n + 1)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    jitter = 0.02 * torch.randn(2, n + 1, n + 1, generator=generator)
    w = 1 + torch.rand(n + 1, n + 1, generator=generator)
    pos = torch.stack([(x + jitter[0]) * w, (y + jitter[1]) * w, torch.zeros_like(x), w], -1)
    index = torch.arange((n + 1) ** 2).view(n + 1, n + 1)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    tri = torch.cat([torch.stack([a, b, c], -1), torch.stack([a, c, d], -1)]).view(-1, 3)
    raster = rasterize(pos.reshape(1, -1, 4), tri, size, backend=backend)
    assert (raster.tri_id > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_interpolated_positions_lie_on_the_pixel_rays(backend):
    mesh, cameras = blob(3), views(3, 40, 48)
    raster = rasterize(clip(mesh, cameras), mesh.t_pos_idx, (40, 48), backend=backend)
    point = interpolate(mesh.v_pos, raster, mesh.t_pos_idx, backend=backend)
    rays_o, rays_d = cameras.rays()
    offset = torch.linalg.cross(point - rays_o, rays_d).norm(dim=-1)
    hit = raster.tri_id > 0
    assert 0.1 < hit.float().mean() < 0.6
    assert offset[hit].max() < 1e-4


def test_a_sphere_is_seen_where_the_rays_hit_it():
    mesh, cameras = icosphere(5), views(2, 64, 64)
    raster = rasterize(clip(mesh, cameras), mesh.t_pos_idx, (64, 64))
    rays_o, rays_d = cameras.rays()
    closest = torch.linalg.cross(rays_o, rays_d).norm(dim=-1)
    assert (raster.tri_id > 0)[closest < 0.498].all()
    assert not (raster.tri_id > 0)[closest > 0.5].any()


def test_the_top_row_of_the_image_sees_the_top_of_the_object():
    mesh, cameras = icosphere(3), views(4, 32, 32)
    raster = rasterize(clip(mesh, cameras), mesh.t_pos_idx, (32, 32))
    height = interpolate(mesh.v_pos, raster, mesh.t_pos_idx)[..., 2]
    hit = raster.tri_id > 0
    assert height[:, :14][hit[:, :14]].mean() > height[:, 18:][hit[:, 18:]].mean() + 0.2


def test_depth_grows_with_the_distance_from_the_camera():
    mesh, cameras = blob(3), views(1, 48, 48)
    raster = rasterize(clip(mesh, cameras), mesh.t_pos_idx, (48, 48))
    point = interpolate(mesh.v_pos, raster, mesh.t_pos_idx)
    along = -((point - cameras.position) @ cameras.c2w[0, :3, 2])
    near, far = 0.01, 100.0
    expected = ((far + near) - 2 * far * near / along) / (far - near)
    hit = raster.tri_id > 0
    torch.testing.assert_close(raster.zw[hit], expected[hit], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (31, 53)])
def test_numba_and_torch_agree_bit_for_bit_on_ids_and_depth(size):
    mesh = blob(4)
    pos = clip(mesh, views(2, *size))
    numba = rasterize(pos, mesh.t_pos_idx, size, backend="numba")
    reference = rasterize(pos, mesh.t_pos_idx, size, backend="torch")
    assert torch.equal(numba.tri_id, reference.tri_id)
    assert torch.equal(numba.zw, reference.zw)
    torch.testing.assert_close(numba.bary, reference.bary, atol=1e-6, rtol=0)


def test_torch_visibility_is_the_same_in_small_pieces(monkeypatch):
    from renderers.backends import torch_raster

    mesh = blob(3)
    pos = clip(mesh, views(1, 48, 48))
    whole = rasterize(pos, mesh.t_pos_idx, (48, 48), backend="torch")
    monkeypatch.setattr(torch_raster, "MAX_CANDIDATES", 97)
    pieces = rasterize(pos, mesh.t_pos_idx, (48, 48), backend="torch")
    assert torch.equal(whole.tri_id, pieces.tri_id)
    assert torch.equal(whole.zw, pieces.zw)


@pytest.mark.parametrize("shared", [True, False])
def test_numba_gradients_match_the_torch_reference(shared, generator):
    mesh, size = blob(2), (40, 36)
    shape = (mesh.n_vertices, 5) if shared else (3, mesh.n_vertices, 5)
    attr = torch.randn(shape, generator=generator)
    weight = torch.randn(3, *size, 5, generator=generator)
    gradients = {}
    for backend in BACKENDS:
        pos = clip(mesh, views(3, *size)).requires_grad_()
        leaf = attr.clone().requires_grad_()
        raster = rasterize(pos, mesh.t_pos_idx, size, backend=backend)
        value = interpolate(leaf, raster, mesh.t_pos_idx, backend=backend)
        gradients[backend] = torch.autograd.grad((value * weight).sum(), (leaf, pos))
    for ours, reference in zip(*gradients.values(), strict=True):
        assert (ours - reference).norm() < 1e-5 * reference.norm()
        assert reference.norm() > 0


def test_second_derivatives_of_the_kernels_are_those_of_the_reference(generator):
    mesh, size = blob(1), (24, 24)
    attr = torch.randn(mesh.n_vertices, 2, generator=generator)
    second = {}
    for backend in BACKENDS:
        pos = clip(mesh, views(2, *size)).requires_grad_()
        leaf = attr.clone().requires_grad_()
        raster = rasterize(pos, mesh.t_pos_idx, size, backend=backend)
        value = interpolate(leaf, raster, mesh.t_pos_idx, backend=backend)
        first = torch.autograd.grad(value.square().sum(), (leaf, pos), create_graph=True)
        second[backend] = torch.autograd.grad(sum(g.square().sum() for g in first), (leaf, pos))
    for ours, reference in zip(*second.values(), strict=True):
        assert (ours - reference).norm() < 1e-4 * reference.norm()
        assert reference.norm() > 0


def test_reference_gradients_match_finite_differences():
    # An even size: no pixel centre lies on an edge of this symmetric mesh.
    mesh, size = icosphere(0), (6, 8)
    pos = clip(mesh, views(1, *size)).double().requires_grad_()
    attr = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    attr.requires_grad_()
    fixed = rasterize(pos, mesh.t_pos_idx, size).tri_id

    def render(pos, attr):
        raster = rasterize(pos, mesh.t_pos_idx, size)
        assert torch.equal(raster.tri_id, fixed)
        return interpolate(attr, raster, mesh.t_pos_idx)

    # Steps of 1e-6 change no pixel's face here (asserted above), so the map is smooth.
    assert torch.autograd.gradcheck(render, (pos, attr))


def test_no_gradient_reaches_the_clip_depth():
    mesh, size = icosphere(1), (24, 24)
    pos = clip(mesh, views(1, *size)).requires_grad_()
    raster = rasterize(pos, mesh.t_pos_idx, size)
    assert not raster.zw.requires_grad
    interpolate(mesh.v_pos, raster, mesh.t_pos_idx).sum().backward()
    assert (pos.grad[..., 2] == 0).all()
    assert pos.grad[..., 0].abs().sum() > 0


def test_a_batch_equals_a_loop_over_views():
    mesh, size = blob(2), (33, 29)
    pos = clip(mesh, views(3, *size))
    together = rasterize(pos, mesh.t_pos_idx, size)
    for i in range(3):
        alone = rasterize(pos[i : i + 1], mesh.t_pos_idx, size)
        assert torch.equal(together.tri_id[i], alone.tri_id[0])
        assert torch.equal(together.bary[i], alone.bary[0])


def test_gradients_are_bit_identical_from_run_to_run(generator):
    mesh, size = blob(3), (200, 200)
    weight = torch.randn(2, *size, 3, generator=generator)

    def gradients():
        pos = clip(mesh, views(2, *size)).requires_grad_()
        attr = mesh.v_pos.clone().requires_grad_()
        raster = rasterize(pos, mesh.t_pos_idx, size)
        value = interpolate(attr, raster, mesh.t_pos_idx)
        return torch.autograd.grad((value * weight).sum(), (pos, attr))

    first, second = gradients(), gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [[0.0, 0.0, 0.0, -1.0], [float("nan"), 0.0, 0.0, 1.0]])
def test_a_face_with_a_corner_behind_the_camera_or_not_a_number_is_dropped(backend, bad):
    size = (8, 8)
    pos = screen_triangle([[-20, -20], [40, -20], [-20, 40]], size)
    pos[0] = torch.tensor(bad)
    assert not (rasterize(pos[None], ONE_FACE, size, backend=backend).tri_id > 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_face_far_larger_than_the_image_fills_it(backend):
    size = (8, 8)
    pos = screen_triangle([[-3e6, -3e6], [6e6, -3e6], [-3e6, 6e6]], size)[None]
    assert (rasterize(pos, ONE_FACE, size, backend=backend).tri_id == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mesh_without_faces_is_all_background(backend):
    raster = rasterize(
        torch.rand(2, 3, 4), torch.zeros(0, 3, dtype=torch.int64), (4, 5), backend=backend
    )
    assert raster.tri_id.shape == (2, 4, 5)
    assert (raster.mask == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_a_face_seen_almost_edge_on_stay_in_the_triangle(backend):
    size = (16, 16)
    pos = screen_triangle([[0, 8.5], [16, 8.5], [8, 8.5 + 1e-5]], size)[None].requires_grad_()
    raster = rasterize(pos, ONE_FACE, size, backend=backend)
    raster.bary.sum().backward()
    assert (raster.bary >= 0).all()
    assert (raster.bary.sum(-1) <= 1 + 1e-6).all()
    assert torch.isfinite(pos.grad).all()


def test_an_index_beyond_the_vertices_is_refused():
    with pytest.raises(ShapeError, match=r"tri holds indices 0\.\.3, expected 0\.\.2 for 3"):
        rasterize(torch.rand(1, 3, 4), torch.tensor([[0, 1, 3]]), (4, 4))


def test_short_integer_indices_are_refused():
    with pytest.raises(ShapeError, match=r"tri has type torch\.int32, expected torch\.int64"):
        rasterize(torch.rand(1, 3, 4), ONE_FACE.int(), (4, 4))


def test_an_empty_image_is_refused():
    with pytest.raises(ShapeError, match=r"size is \(0, 4\)"):
        rasterize(torch.rand(1, 3, 4), ONE_FACE, (0, 4))


def test_attributes_of_another_number_of_views_are_refused():
    raster = rasterize(torch.rand(2, 3, 4), ONE_FACE, (4, 4))
    with pytest.raises(ShapeError, match="attr has 3 views, but the raster has 2"):
        interpolate(torch.rand(3, 3, 1), raster, ONE_FACE)


def test_double_precision_runs_on_the_reference():
    mesh, size = blob(2), (24, 24)
    pos = clip(mesh, views(1, *size))
    double = rasterize(pos.double(), mesh.t_pos_idx, size)
    assert double.bary.dtype == torch.float64
    same = double.tri_id == rasterize(pos, mesh.t_pos_idx, size).tri_id
    assert same.float().mean() > 0.99


def test_a_kernel_of_another_device_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendMissing, match="'triton' was asked for on device 'cpu'"):
        rasterize(torch.rand(1, 3, 4), ONE_FACE, (4, 4), backend="triton")
