"""Edge anti-aliasing: exact coverage where known, gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from renderers.antialias import Topology, antialias
from renderers.errors import ShapeError
from renderers.mesh import Mesh
from renderers.raster import rasterize, to_clip
from tests.renderers.shapes import blob, icosphere, screen_triangle, views

SQUARE = torch.tensor([[0, 1, 2], [0, 2, 3]])


def square_mask(corners: list[list[float]], size: tuple[int, int], tri: Tensor = SQUARE):
    """Anti-aliased mask of a screen quadrilateral, and its clip positions as a leaf."""
    pos = screen_triangle(corners, size)[None].requires_grad_()
    raster = rasterize(pos, tri, size)
    return antialias(raster.mask, raster, pos, tri, Topology(tri))[0, ..., 0], pos


def weight_image(n: int) -> Tensor:
    """A smooth weight over the image, so that moving the silhouette changes the weighted area."""
    s = (torch.arange(n) + 0.5) / n * 2 - 1
    return (
        1 + 1.3 * torch.sin(2.5 * s)[:, None] + torch.cos(3 * s + 0.4)[None] + s[None] * s[:, None]
    )


def placed(mesh: Mesh, params: Tensor, n: int) -> Tensor:
    """Clip positions of the mesh scaled by ``params[3]`` and moved by ``params[:3]``."""
    return to_clip(mesh.v_pos * params[3] + params[:3], views(1, n, n).mvp())


def weighted_area(mesh: Mesh, params: Tensor, n: int) -> Tensor:
    raster = rasterize(placed(mesh, params, n), mesh.t_pos_idx, (n, n))
    return (raster.mask[0, ..., 0] * weight_image(n)).double().mean()


def silhouette_gradient_error(mesh: Mesh, n: int, reference_px: int) -> float:
    """Relative error of the gradient of a weighted silhouette area against finite differences."""
    start, step = torch.tensor([0.03, 0.02, -0.01, 1.0]), 4e-3
    reference = torch.stack(
        [
            weighted_area(mesh, start + step * axis, reference_px)
            - weighted_area(mesh, start - step * axis, reference_px)
            for axis in torch.eye(4)
        ]
    ).float() / (2 * step)
    params = start.clone().requires_grad_()
    pos = placed(mesh, params, n)
    raster = rasterize(pos, mesh.t_pos_idx, (n, n))
    mask = antialias(raster.mask, raster, pos, mesh.t_pos_idx, Topology(mesh.t_pos_idx))
    (mask[0, ..., 0] * weight_image(n)).mean().backward()
    return ((params.grad - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("left", [5.1, 5.5, 5.77])
def test_a_vertical_band_covers_exactly_its_width(left):
    mask, pos = square_mask([[left, -9], [11.3, -9], [11.3, 30], [left, 30]], (12, 16))
    torch.testing.assert_close(mask.sum(1), torch.full((12,), 11.3 - left), atol=1e-4, rtol=0)
    # Coverage of the pixels that the sides cut is exact as well, not only the sum.
    assert mask[4, 11].item() == pytest.approx(0.3, abs=1e-4)
    mask.sum().backward()
    moved = pos.grad[0, :, 0] * 2 / 16  # per pixel instead of per ndc unit
    assert moved[[1, 2]].sum().item() == pytest.approx(12.0, rel=1e-4)
    assert moved[[0, 3]].sum().item() == pytest.approx(-12.0, rel=1e-4)


def test_a_horizontal_band_covers_exactly_its_height():
    mask, _ = square_mask([[-9, 3.2], [30, 3.2], [30, 7.9], [-9, 7.9]], (12, 16))
    torch.testing.assert_close(mask.sum(0), torch.full((16,), 4.7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.71])
def test_a_diagonal_half_plane_covers_half_the_image(offset):
    corners = [[-40 + offset, -40], [40 + offset, 40], [-40 + offset, 40]]
    mask, pos = square_mask(corners, (32, 32), torch.tensor([[0, 1, 2]]))
    # Two pixels in the corners of the image have neighbours outside it.
    assert mask.sum().item() == pytest.approx(32 * 32 / 2 + 32 * offset, abs=1.0)
    mask.sum().backward()
    assert (pos.grad[0, :, 0].sum() * 2 / 32).item() == pytest.approx(32.0, abs=1.0)


def test_the_inside_of_a_surface_stays_untouched():
    mesh, n = icosphere(2), 48
    pos = to_clip(mesh.v_pos, views(1, n, n).mvp())
    raster = rasterize(pos, mesh.t_pos_idx, (n, n))
    color = torch.rand(1, n, n, 3, generator=torch.Generator().manual_seed(0))
    smooth = antialias(color, raster, pos, mesh.t_pos_idx, Topology(mesh.t_pos_idx))
    inside = torch.nn.functional.max_pool2d(-raster.mask[..., 0], 3, 1, 1)[0] == -1
    outside = torch.nn.functional.max_pool2d(raster.mask[..., 0], 3, 1, 1)[0] == 0
    changed = (smooth != color).any(-1)[0]
    assert not changed[inside | outside].any()
    assert changed.sum() > 40


def test_a_uniform_image_stays_uniform():
    mesh, n = blob(3), 48
    pos = to_clip(mesh.v_pos, views(2, n, n).mvp())
    raster = rasterize(pos, mesh.t_pos_idx, (n, n))
    color = torch.full((2, n, n, 3), 0.7)
    smooth = antialias(color, raster, pos, mesh.t_pos_idx, Topology(mesh.t_pos_idx))
    assert torch.equal(smooth, color)


def test_a_mask_stays_in_range_gains_soft_pixels_and_keeps_its_area():
    mesh, n = blob(4), 64
    pos = to_clip(mesh.v_pos, views(2, n, n).mvp())
    raster = rasterize(pos, mesh.t_pos_idx, (n, n))
    mask = antialias(raster.mask, raster, pos, mesh.t_pos_idx, Topology(mesh.t_pos_idx))
    assert mask.min() > -1e-5
    assert mask.max() < 1 + 1e-5
    assert ((mask > 0.01) & (mask < 0.99)).sum() > 100
    assert mask.sum().item() == pytest.approx(raster.mask.sum().item(), rel=0.01)


HOLED = torch.tensor(
    [[0, 1, 5], [0, 5, 4], [1, 2, 6], [1, 6, 5], [2, 3, 7], [2, 7, 6], [3, 0, 4], [3, 4, 7]]
)
"""A large square (0 to 3) around a small hole (4 to 7)."""


def small_square(half: float) -> list[list[float]]:
    """Corners around the centre of pixel (8, 8)."""
    return [[8.5 + x * half, 8.5 + y * half] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


@pytest.mark.parametrize("half", [0.05, 0.1, 0.25, 0.3, 0.4, 0.49])
def test_a_speck_and_a_hole_of_less_than_a_pixel_stay_in_range(half):
    """All four sides of the pixel in the middle are cut at once."""
    speck, _ = square_mask(small_square(half), (16, 16))
    frame = [[-9.0, -9.0], [30.0, -9.0], [30.0, 30.0], [-9.0, 30.0]]
    hole, _ = square_mask(frame + small_square(half), (16, 16), HOLED)
    for mask in (speck, hole):
        assert mask.min() > -1e-6
        assert mask.max() < 1 + 1e-6
    # Each side at the distance h from the centre gives a share of 1/2 - h to the pixel beyond.
    expected = max(0.0, 1.0 - 4.0 * (0.5 - half))
    assert speck[8, 8].item() == pytest.approx(expected, abs=1e-4)
    assert hole[8, 8].item() == pytest.approx(1.0 - expected, abs=1e-4)


def test_shares_of_more_than_one_are_those_of_their_sum():
    """Four neighbours of one colour each, and the sides at four distances."""
    left, top, right, bottom = 0.1, 0.2, 0.3, 0.15
    x, y = (8.5 - left, 8.5 + right), (8.5 - top, 8.5 + bottom)
    corners = [[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]]]
    pos = screen_triangle(corners, (16, 16))[None]
    raster, color = rasterize(pos, SQUARE, (16, 16)), torch.zeros(1, 16, 16, 1)
    color[0, 8, 7], color[0, 7, 8], color[0, 8, 9], color[0, 9, 8] = 1.0, 2.0, 3.0, 4.0
    color[0, 8, 8] = 100.0
    shares = torch.tensor([0.5 - left, 0.5 - top, 0.5 - right, 0.5 - bottom])
    expected = (shares * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum() / shares.sum()
    smooth = antialias(color, raster, pos, SQUARE, Topology(SQUARE))
    assert shares.sum() > 1
    assert smooth[0, 8, 8].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("half", [0.15, 0.4])
def test_gradients_of_a_speck_match_the_automatic_check(half):
    """Shares of more than one (half a width of 0.15) and of less."""
    size = (16, 16)
    moved = torch.tensor([[0.03, -0.02], [0.01, 0.04], [-0.05, 0.02], [0.02, 0.01]])
    corners = (torch.tensor(small_square(half)) + moved).tolist()
    pos = screen_triangle(corners, size)[None].double().requires_grad_()
    raster, topology = rasterize(pos.detach(), SQUARE, size), Topology(SQUARE)
    color = torch.rand(1, *size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    color.requires_grad_()

    def center(color: Tensor, pos: Tensor) -> Tensor:
        return antialias(color, raster, pos, SQUARE, topology)[:, 7:10, 7:10]

    assert torch.autograd.gradcheck(center, (color, pos))


@pytest.mark.parametrize("n", [64, 160])
@pytest.mark.parametrize("subdivisions", [3, 4])
def test_silhouette_gradients_match_finite_differences(subdivisions, n):
    assert silhouette_gradient_error(blob(subdivisions), n, 1024) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [64, 256, 512])
@pytest.mark.parametrize("subdivisions", [3, 4, 5, 6])
def test_silhouette_gradients_match_finite_differences_for_1k_to_82k_faces(subdivisions, n):
    assert silhouette_gradient_error(blob(subdivisions), n, 2048) < 0.05


def test_an_edge_hidden_behind_a_surface_changes_nothing():
    size = (24, 24)
    front = screen_triangle([[-50, -50], [150, -50], [-50, 150]], size, z=-0.5)
    behind = screen_triangle([[4.2, 4.2], [17.7, 4.2], [4.2, 17.7]], size, z=0.5)
    pos, tri = torch.cat([front, behind])[None], torch.tensor([[0, 1, 2], [3, 4, 5]])
    raster = rasterize(pos, tri, size)
    color = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    assert (raster.tri_id == 1).all()
    assert torch.equal(antialias(color, raster, pos, tri, Topology(tri)), color)


def test_an_edge_in_front_of_another_surface_blends_the_two():
    size = (24, 24)
    far = screen_triangle([[-50, -50], [150, -50], [-50, 150]], size, z=0.5)
    near = screen_triangle([[-90, -90], [10.8, -90], [10.8, 90], [-90, 90]], size, z=-0.5)
    tri = torch.tensor([[0, 1, 2], [3, 4, 5], [3, 5, 6]])
    pos = torch.cat([far, near])[None]
    raster = rasterize(pos, tri, size)
    color = (raster.tri_id > 1).float()[..., None]
    smooth = antialias(color, raster, pos, tri, Topology(tri))[0, 1:-1, :, 0]
    torch.testing.assert_close(smooth.sum(1), torch.full((22,), 10.8), atol=1e-4, rtol=0)


def test_the_winding_of_the_faces_does_not_matter(generator):
    mesh, n = blob(2), 48
    pos = to_clip(mesh.v_pos, views(1, n, n).mvp())
    flip = torch.rand(mesh.n_faces, generator=generator) < 0.5
    mixed = torch.where(flip[:, None], mesh.t_pos_idx.flip(1), mesh.t_pos_idx)
    masks = []
    for tri in (mesh.t_pos_idx, mixed):
        raster = rasterize(pos, tri, (n, n))
        masks.append(antialias(raster.mask, raster, pos, tri, Topology(tri)))
    torch.testing.assert_close(masks[0], masks[1], atol=1e-5, rtol=0)


def test_gradients_match_the_automatic_check_in_double_precision():
    size = (6, 7)
    pos = screen_triangle([[1.3, 1.1], [6.2, 1.9], [2.4, 5.2]], size, z=0.1)[None].double()
    pos = (pos * torch.tensor([[[1.0], [1.3], [0.8]]])).requires_grad_()
    tri = torch.tensor([[0, 1, 2]])
    raster, topology = rasterize(pos.detach(), tri, size), Topology(tri)
    color = torch.rand(1, *size, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda color, pos: antialias(color, raster, pos, tri, topology), (color, pos)
    )


def test_a_batch_equals_a_loop_over_views():
    mesh, n = blob(2), 40
    pos, topology = to_clip(mesh.v_pos, views(3, n, n).mvp()), Topology(mesh.t_pos_idx)
    raster = rasterize(pos, mesh.t_pos_idx, (n, n))
    together = antialias(raster.mask, raster, pos, mesh.t_pos_idx, topology)
    for i in range(3):
        one = pos[i : i + 1]
        alone = rasterize(one, mesh.t_pos_idx, (n, n))
        expected = antialias(alone.mask, alone, one, mesh.t_pos_idx, topology)
        assert torch.equal(together[i], expected[0])


def test_gradients_are_bit_identical_from_run_to_run():
    mesh, n = blob(4), 96
    topology, weight = Topology(mesh.t_pos_idx), weight_image(n)

    def gradient():
        pos = to_clip(mesh.v_pos, views(2, n, n).mvp()).requires_grad_()
        raster = rasterize(pos, mesh.t_pos_idx, (n, n))
        mask = antialias(raster.mask, raster, pos, mesh.t_pos_idx, topology)
        return torch.autograd.grad((mask[..., 0] * weight).sum(), pos)[0]

    assert torch.equal(gradient(), gradient())


def test_vertices_behind_the_camera_give_finite_results():
    mesh, n = blob(2), 32
    pos = to_clip(mesh.v_pos, views(1, n, n).mvp())
    pos[0, :20, 3] = -0.5
    pos[0, 20, 3] = 0.0
    pos = pos.requires_grad_()
    raster = rasterize(pos, mesh.t_pos_idx, (n, n))
    mask = antialias(raster.mask, raster, pos, mesh.t_pos_idx, Topology(mesh.t_pos_idx))
    mask.sum().backward()
    assert torch.isfinite(mask).all()
    assert torch.isfinite(pos.grad).all()


def test_an_empty_picture_passes_through():
    tri = torch.zeros(0, 3, dtype=torch.int64)
    pos, color = torch.rand(1, 3, 4), torch.rand(1, 4, 4, 3)
    raster = rasterize(pos, tri, (4, 4))
    assert torch.equal(antialias(color, raster, pos, tri, Topology(tri)), color)


def test_a_closed_surface_has_three_edges_for_two_faces_and_no_boundary():
    mesh = icosphere(2)
    topology = Topology(mesh.t_pos_idx)
    assert topology.n_edges == mesh.n_faces * 3 // 2
    assert (topology.faces >= 0).all()
    assert topology.consistent.all()
    ends = topology.vertices
    tri = mesh.t_pos_idx[topology.faces]  # [E, 2, 3]
    assert (tri == ends[:, None, :1]).any(-1).all()
    assert (tri == topology.opposite[..., None]).any(-1).all()
    assert not (topology.opposite[:, :, None] == ends[:, None]).any()


def test_an_open_strip_has_boundaries():
    topology = Topology(SQUARE)
    assert topology.n_edges == 5
    assert (topology.faces[:, 1] < 0).sum() == 4


def test_an_edge_of_three_faces_appears_twice():
    topology = Topology(torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]))
    shared = (topology.vertices.sort(1).values == torch.tensor([0, 1])).all(1)
    assert shared.sum() == 2
    assert (topology.faces[shared][:, 1] >= 0).sum() == 1


def test_a_topology_of_other_faces_is_refused():
    mesh = icosphere(0)
    pos = to_clip(mesh.v_pos, views(1, 8, 8).mvp())
    raster = rasterize(pos, mesh.t_pos_idx, (8, 8))
    with pytest.raises(ShapeError, match="topology was made for 2 faces, but tri has 20"):
        antialias(raster.mask, raster, pos, mesh.t_pos_idx, Topology(SQUARE))


def test_colours_of_another_size_are_refused():
    mesh = icosphere(0)
    pos = to_clip(mesh.v_pos, views(1, 8, 8).mvp())
    raster = rasterize(pos, mesh.t_pos_idx, (8, 8))
    with pytest.raises(ShapeError, match=r"color has shape \(1, 9, 8, 3\), but the raster is"):
        antialias(torch.rand(1, 9, 8, 3), raster, pos, mesh.t_pos_idx, Topology(mesh.t_pos_idx))
