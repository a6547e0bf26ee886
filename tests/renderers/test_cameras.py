"""Cameras obey docs/conventions.md: handedness, projection, rays."""

from __future__ import annotations

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from renderers.camera_configs import MultiViewCamerasConfig, RandomCamerasConfig
from renderers.cameras import Cameras, orbit_cameras, sample_cameras
from renderers.errors import ShapeError

SAMPLERS = [
    RandomCamerasConfig(batch_size=16, height=12, width=20),
    RandomCamerasConfig(batch_size=16, height=20, width=12, elevation_deg_range=(-90.0, 90.0)),
    MultiViewCamerasConfig(batch_size=16, height=16, width=16),
]


def project(cameras: Cameras, points: torch.Tensor) -> torch.Tensor:
    """Pixel coordinates (col, row) of world points [b, n, 3]."""
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    clip = torch.einsum("bij,bnj->bni", cameras.mvp(), homogeneous)
    ndc = clip[..., :2] / clip[..., 3:]
    return (ndc + 1) / 2 * points.new_tensor([cameras.width, cameras.height])


def one_orbit(n_views: int = 8, elevation_deg: float = 20.0, **changes) -> Cameras:
    settings = {"distance": 2.5, "fovy_deg": 40.0, "height": 24, "width": 32} | changes
    return orbit_cameras(n_views, elevation_deg=elevation_deg, **settings)


@pytest.mark.parametrize("config", SAMPLERS)
def test_rotations_are_proper_for_every_sampler(config, generator):
    rotation = sample_cameras(config, generator, fraction=1.0).c2w[:, :3, :3].double()
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(16).double(), atol=1e-5)
    identity = rotation @ rotation.transpose(1, 2)
    assert torch.allclose(identity, torch.eye(3).double().expand_as(identity), atol=1e-5)


@pytest.mark.parametrize("elevation_deg", [-90.0, -30.0, 0.0, 60.0, 90.0])
def test_orbit_rotations_are_proper_also_at_the_poles(elevation_deg):
    rotation = one_orbit(elevation_deg=elevation_deg).c2w[:, :3, :3]
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(8), atol=1e-5)


def test_image_at_the_pole_is_the_limit_of_images_nearby():
    at, near = (one_orbit(elevation_deg=angle).c2w for angle in (90.0, 89.8))
    assert torch.allclose(at, near, atol=0.02)


def test_front_camera_stands_on_plus_x_and_sees_plus_y_to_the_right():
    c2w = one_orbit(1, elevation_deg=0.0).c2w[0]
    expected = torch.tensor([[0.0, 0, 1, 2.5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert torch.allclose(c2w, expected, atol=1e-6)


def test_azimuth_grows_from_plus_x_towards_plus_y():
    position = one_orbit(4, elevation_deg=0.0).position / 2.5
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    assert torch.allclose(position, expected, atol=1e-6)


def test_orbit_centre_projects_to_the_image_centre():
    cameras = one_orbit()
    pixels = project(cameras, torch.zeros(8, 1, 3))
    assert torch.allclose(pixels, torch.tensor([16.0, 12.0]).expand_as(pixels), atol=1e-5)


def test_point_above_the_centre_lands_in_a_smaller_row():
    pixels = project(one_orbit(), torch.tensor([0.0, 0.0, 0.3]).expand(8, 1, 3))
    assert (pixels[..., 1] < 12.0).all()


@pytest.mark.parametrize("config", SAMPLERS)
def test_rays_and_mvp_agree(config, generator):
    cameras = sample_cameras(config, generator, fraction=1.0).to(torch.float64)
    rays_o, rays_d = cameras.rays()
    points = (rays_o + 1.7 * rays_d).flatten(1, 2)
    cols, rows = torch.meshgrid(
        torch.arange(cameras.width) + 0.5, torch.arange(cameras.height) + 0.5, indexing="xy"
    )
    expected = torch.stack([cols, rows], dim=-1).reshape(1, -1, 2).double()
    assert (project(cameras, points) - expected).abs().max() < 1e-5


def test_rays_and_mvp_agree_in_float32():
    cameras = one_orbit()
    rays_o, rays_d = cameras.rays()
    ndc = project(cameras, (rays_o + 2.5 * rays_d).flatten(1, 2)) / torch.tensor([16.0, 12.0]) - 1
    cols, rows = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(24) + 0.5, indexing="xy")
    expected = torch.stack([cols / 16, rows / 12], dim=-1).reshape(1, -1, 2) - 1
    assert (ndc - expected).abs().max() < 1e-5


def test_rays_are_unit_and_start_at_the_camera():
    cameras = one_orbit()
    rays_o, rays_d = cameras.rays()
    assert rays_o.shape == rays_d.shape == (8, 24, 32, 3)
    assert torch.allclose(rays_d.norm(dim=-1), torch.ones(8, 24, 32), atol=1e-6)
    assert torch.equal(rays_o[:, 3, 5], cameras.position)


def test_field_of_view_spans_the_image_height():
    _, rays_d = one_orbit(1, elevation_deg=0.0, height=2000, width=1).rays()
    angle = torch.acos((rays_d[0, 0, 0] * rays_d[0, -1, 0]).sum())
    assert math.degrees(angle) == pytest.approx(40.0, abs=0.05)


def test_depth_range_maps_to_the_clip_cube():
    cameras = one_orbit(1, elevation_deg=0.0).to(torch.float64)
    for distance, expected in ((0.5, -1.0), (4.0, 1.0)):
        point = torch.tensor([2.5 - distance, 0.0, 0.0, 1.0]).double()
        clip = cameras.mvp(near=0.5, far=4.0)[0] @ point
        assert float(clip[2] / clip[3]) == pytest.approx(expected, abs=1e-9)
        assert float(clip[3]) == pytest.approx(distance)


def test_w2c_inverts_c2w(generator):
    cameras = sample_cameras(SAMPLERS[0], generator, fraction=1.0)
    product = cameras.w2c() @ cameras.c2w
    assert torch.allclose(product, torch.eye(4).expand_as(product), atol=1e-5)


def test_indexing_keeps_batches_and_resizing_keeps_the_view():
    cameras = one_orbit()
    assert len(cameras) == 8
    assert torch.equal(cameras[2].c2w, cameras.c2w[2:3])
    assert torch.equal(cameras[1:7:2].azimuth_deg, cameras.azimuth_deg[1:7:2])
    assert torch.equal(cameras[torch.tensor([4, 0])].fovy, cameras.fovy[[4, 0]])
    resized = cameras.resized(48, 64)
    assert resized.rays()[1].shape == (8, 48, 64, 3)
    assert torch.allclose(resized.mvp(), cameras.mvp())


def test_cameras_around_a_part_see_it_as_the_others_saw_the_origin():
    whole, center = one_orbit(), torch.tensor([0.3, -0.2, 0.1])
    box = torch.tensor([[0.2, -0.3, 0.0], [0.4, -0.1, 0.2]])
    part = whole.around(center, 0.4, box)
    points = torch.rand(8, 5, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    moved = project(part, center + 0.4 * points)
    torch.testing.assert_close(moved, project(whole, points), atol=1e-3, rtol=0)
    torch.testing.assert_close(part.light_position, center + 0.4 * whole.light_position)
    assert torch.equal(part.within, box.expand(8, 2, 3))
    assert torch.equal(part[[0, 2]].within, box.expand(2, 2, 3))
    assert torch.equal(part.azimuth_deg, whole.azimuth_deg)
    assert whole.within is None
    assert not torch.equal(part.c2w, whole.c2w)


def test_inconsistent_batches_are_named():
    good = one_orbit()
    # With shape checking switched on in the test run, jaxtyping speaks first.
    with pytest.raises((ShapeError, TypeCheckError), match="fovy"):
        Cameras(**{**vars(good), "fovy": torch.zeros(3)})
    with pytest.raises(ShapeError, match="image size 0x32"):
        good.resized(0, 32)
