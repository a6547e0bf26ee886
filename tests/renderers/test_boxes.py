"""Boxes as cameras see them: closed forms, depth order, and the same as rendered cubes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from renderers.backgrounds import SolidBackground
from renderers.box_configs import BoxConfig, BoxesBlobConfig
from renderers.boxes import around_box, box_corners, box_distances, box_masks, project_points
from renderers.cameras import orbit_cameras
from renderers.configs import (
    AlbedoMaterialConfig,
    HashGridConfig,
    HashVolumeConfig,
    SolidBackgroundConfig,
)
from renderers.fields.hash_volume import HashVolumeField
from renderers.mesh import Mesh
from renderers.mesh_configs import MeshRendererConfig
from renderers.mesh_renderer import MeshRenderer
from tests.renderers.shapes import views

TAN = math.tan(math.radians(20.0))
FACES = [(0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1)]
FACES += [(2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3)]


def front(size: int = 64):
    """One camera on +x, 3 away."""
    return orbit_cameras(1, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=size, width=size)


def test_points_land_where_a_pinhole_puts_them():
    places, depth = project_points(front(), torch.tensor([[0.5, 0.3, -0.2], [0.0, 0.0, 0.0]]))
    # From the front +y is right and +z is up.
    expected = torch.tensor(
        [[0.5 + 0.3 / (2 * 2.5 * TAN), 0.5 + 0.2 / (2 * 2.5 * TAN)], [0.5, 0.5]]
    )
    torch.testing.assert_close(places[0], expected)
    torch.testing.assert_close(depth[0], torch.tensor([2.5, 3.0]))


def test_points_land_on_the_pixel_whose_ray_meets_them():
    cameras = views(3, 24, 40)
    rays_o, rays_d = cameras.rays()
    points = (rays_o + 2.0 * rays_d)[:, 5, 31]
    places, depth = project_points(cameras, points)
    own = torch.arange(3)
    expected = torch.tensor([(31 + 0.5) / 40, (5 + 0.5) / 24]).expand(3, 2)
    torch.testing.assert_close(places[own, own], expected)
    assert (depth[own, own] > 0).all()


def test_face_on_a_box_covers_the_projection_of_its_front():
    box = BoxConfig((0.0, 0.2, -0.1), (0.5, 0.8, 0.6))
    mask = box_masks([box], front(), (64, 64), samples=8)[0, 0]
    per_unit = 64 / (2 * (3.0 - 0.25) * TAN)
    assert float(mask.sum()) == pytest.approx(0.8 * 0.6 * per_unit**2, rel=0.01)
    rows, cols = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    middle = [float((mask * axis).sum() / mask.sum()) for axis in (cols, rows)]
    assert middle == pytest.approx([32 + 0.2 * per_unit, 32 + 0.1 * per_unit], abs=0.1)


def test_mask_is_the_silhouette_of_the_rendered_box():
    boxes = [BoxConfig((0.1, -0.2, 0.15), (0.9, 0.4, 0.7))]
    cameras = views(5, 48, 64)
    mesh = Mesh(box_corners(boxes)[0], torch.tensor(FACES))
    render = MeshRenderer(
        MeshRendererConfig(), SolidBackground(SolidBackgroundConfig()), AlbedoMaterialConfig()
    ).render(mesh, cameras, lambda surface: torch.ones_like(surface.position))
    mask = box_masks(boxes, cameras, (48, 64))[:, 0]
    assert (mask - render.opacity[..., 0]).abs().mean() < 0.003
    assert mask.sum() == pytest.approx(float(render.opacity.sum()), rel=0.01)
    places, _ = project_points(cameras, box_corners(boxes)[0])
    for one, corners in zip(mask, places, strict=True):
        found = (one > 0.0).nonzero()
        low, high = found.amin(dim=0).flip(0), found.amax(dim=0).flip(0) + 1
        pixels = corners * torch.tensor([64.0, 48.0])
        assert ((low - pixels.amin(dim=0)).abs() <= 1.0).all()
        assert ((high - pixels.amax(dim=0)).abs() <= 1.0).all()


def test_the_nearer_box_hides_the_other_in_each_view():
    near = BoxConfig((0.6, 0.0, 0.0), (0.4, 0.4, 0.4))
    far = BoxConfig((-0.6, 0.0, 0.0), (0.4, 0.4, 0.4))
    cameras = orbit_cameras(
        2, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=32, width=32
    )  # from +x, then from -x
    masks = box_masks([near, far], cameras, (32, 32))
    assert masks.sum(dim=1).max() <= 1.0
    assert masks[0, 1].max() == 0.0
    assert masks[1, 0].max() == 0.0
    torch.testing.assert_close(masks[0, 0], masks[1, 1].flip(-1), atol=0.07, rtol=0)
    alone = box_masks([far], cameras, (32, 32))
    assert alone[0, 0].sum() > 0.0
    swapped = box_masks([far, near], cameras, (32, 32))
    torch.testing.assert_close(swapped, masks.flip(1))


def test_distances_are_those_of_the_slabs():
    box = BoxConfig((0.0, 0.0, 0.0), (2.0, 2.0, 2.0))
    origins = torch.tensor([[3.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.5, 0.0], [3.0, 2.0, 0.0]])
    forward, back = [-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]
    directions = torch.tensor([forward, back, forward, forward])
    distance = box_distances([box], origins, directions)[:, 0]
    assert distance.tolist() == [2.0, math.inf, 0.0, math.inf]


BLOB = BoxesBlobConfig(
    scale=6.0,
    floor=-3.0,
    boxes=(BoxConfig((0.0, -0.5, 0.0), (0.4, 0.6, 0.8)), BoxConfig((0.0, 0.5, 0.1), (0.6,) * 3)),
)
GRID = HashGridConfig(n_levels=2, log2_hashmap_size=8, base_resolution=4, finest_resolution=8)


WALLED = replace(BLOB, wall=50.0)


def blob_field(blob: BoxesBlobConfig = BLOB) -> HashVolumeField:
    config = HashVolumeConfig(grid=GRID, hidden_width=8, blob=blob)
    return HashVolumeField(config, torch.Generator().manual_seed(0)).double()


def test_density_starts_in_the_boxes():
    x = torch.tensor([[0.0, -0.5, 0.0], [0.2, -0.5, 0.0], [0.0, 0.5, 0.1], [0.0, 0.8, 0.1]])
    start = blob_field().initial_potential(x.double())
    torch.testing.assert_close(
        start, torch.tensor([6.0, 0.0, 6.0, 0.0]).double(), atol=1e-6, rtol=0
    )
    assert blob_field().initial_potential(torch.tensor([[0.9, 0.0, 0.9]]).double()) == -3.0


def test_walls_lower_the_density_with_the_distance_to_the_nearest_box():
    free, walled = blob_field(), blob_field(WALLED)
    inside = torch.tensor([[0.0, -0.5, 0.0], [0.19, -0.79, 0.39], [0.29, 0.79, 0.39]]).double()
    assert torch.equal(walled.initial_potential(inside), free.initial_potential(inside))
    outside = torch.tensor([[0.2, -0.5, 0.5], [0.5, 0.5, 0.1], [0.23, -0.84, 0.0]]).double()
    fall = free.initial_potential(outside) - walled.initial_potential(outside)
    expected = 50.0 * torch.tensor([0.1, 0.2, 0.05]).double()
    torch.testing.assert_close(fall, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blob", [BLOB, WALLED])
def test_slope_of_the_start_is_its_gradient(blob):
    field, x = blob_field(blob), torch.rand(300, 3, generator=torch.Generator().manual_seed(1))
    x = (2.0 * x.double() - 1.0).requires_grad_()
    (expected,) = torch.autograd.grad(field.initial_potential(x).sum(), [x])
    torch.testing.assert_close(field.initial_gradient(x.detach()), expected)
    assert (expected.norm(dim=-1) == 0.0).any() == (blob.wall == 0.0)


@pytest.mark.parametrize("box", BLOB.boxes)
def test_a_box_fills_the_image_as_a_single_object_does(box):
    drawn = orbit_cameras(4, elevation_deg=20.0, distance=2.5, fovy_deg=40.0, height=24, width=24)
    cameras = around_box(drawn, box, object_radius=0.8, margin=1.2)
    longest = max(range(3), key=lambda axis: box.size[axis])
    tips = torch.tensor([box.center, box.center])
    tips[0, longest] += 0.5 * box.size[longest]
    single = torch.zeros(2, 3)
    single[0, longest] = 0.8
    seen, expected = (project_points(*pair)[0] for pair in ((cameras, tips), (drawn, single)))
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)
    corners = box_corners([BoxConfig(box.center, tuple(1.2 * edge for edge in box.size))])[0]
    limits = torch.stack([corners.amin(dim=0), corners.amax(dim=0)])
    torch.testing.assert_close(cameras.within, limits.expand(4, 2, 3))


def test_boxes_without_volume_and_starts_without_density_are_refused():
    with pytest.raises(ValueError, match="expected three lengths above 0"):
        BoxConfig((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="expected less than the scale"):
        replace(BLOB, floor=6.0)
    with pytest.raises(ValueError, match=r"wall is -1\.0 - expected 0 or more"):
        replace(BLOB, wall=-1.0)
