"""Camera draws have the distributions that their configs state."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from renderers.camera_configs import (
    DreamFusionLightConfig,
    Magic3DLightConfig,
    MultiViewCamerasConfig,
    RandomCamerasConfig,
    ResolutionMilestone,
)
from renderers.camera_sampling import open_range, place_light, sample_azimuth, sample_elevation
from renderers.cameras import sample_cameras
from renderers.poses import directions_from_angles

STILL = RandomCamerasConfig(camera_perturb=0.0, center_perturb=0.0, up_perturb=0.0)


def test_stratified_azimuths_put_one_view_into_each_part(generator):
    for _ in range(20):
        azimuth = sample_azimuth((-180.0, 180.0), 6, "stratified", generator)
        parts = ((azimuth + 180.0) / 60.0).floor().int()
        assert parts.tolist() == [0, 1, 2, 3, 4, 5]


def test_independent_azimuths_are_uniform(generator):
    azimuth = sample_azimuth((-180.0, 180.0), 20000, "independent", generator)
    assert float(azimuth.mean()) == pytest.approx(0.0, abs=3.0)
    assert float(azimuth.std()) == pytest.approx(360 / math.sqrt(12), rel=0.02)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 45.0), (1.0, 57.30 - 24.56)])
def test_elevation_mean_tells_degrees_from_sphere(probability, expected, generator):
    # Uniform over 0..90 degrees has mean 45; uniform on the half sphere has mean 90 - 180/pi.
    elevation = sample_elevation((0.0, 90.0), 20000, probability, generator)
    assert float(elevation.mean()) == pytest.approx(expected, abs=0.5)


def test_elevation_mix_is_half_and_half(generator):
    elevation = sample_elevation((0.0, 90.0), 40000, 0.5, generator)
    # P(elevation < 30) is 1/3 in degrees and sin(30) = 1/2 on the sphere.
    assert float((elevation < 30.0).float().mean()) == pytest.approx(5 / 12, abs=0.01)


def test_samples_stay_in_their_ranges(generator):
    config = replace(STILL, batch_size=256)
    cameras = sample_cameras(config, generator, fraction=1.0)
    fovy_deg = torch.rad2deg(cameras.fovy)
    assert 40.0 <= fovy_deg.min() < fovy_deg.max() <= 70.0
    assert -10.0 <= cameras.elevation_deg.min() < cameras.elevation_deg.max() <= 45.0
    assert 1.5 <= cameras.camera_distance.min() < cameras.camera_distance.max() <= 2.0
    assert torch.allclose(cameras.position.norm(dim=-1), cameras.camera_distance, atol=1e-5)


def test_perturbations_move_the_pose_but_not_its_labels(generator):
    still = sample_cameras(STILL, torch.Generator().manual_seed(7), fraction=1.0)
    moved = sample_cameras(RandomCamerasConfig(), torch.Generator().manual_seed(7), fraction=1.0)
    assert torch.equal(still.azimuth_deg, moved.azimuth_deg)
    shift = (still.position - moved.position).abs()
    assert 0.0 < shift.max() <= 0.1
    to_origin = -moved.position / moved.position.norm(dim=-1, keepdim=True)
    assert not torch.allclose(-moved.c2w[:, :3, 2], to_origin, atol=1e-3)


def test_same_seed_gives_the_same_cameras():
    first, second = (
        sample_cameras(RandomCamerasConfig(), torch.Generator().manual_seed(3), fraction=0.5)
        for _ in range(2)
    )
    assert torch.equal(first.c2w, second.c2w)
    assert torch.equal(first.light_position, second.light_position)


def test_progressive_ranges_open_from_one_view():
    config = replace(STILL, progressive_until=0.5, batch_size=64)
    start = sample_cameras(config, torch.Generator().manual_seed(0), fraction=0.0)
    assert torch.equal(start.azimuth_deg, torch.zeros(64))
    assert torch.allclose(start.elevation_deg, torch.full((64,), 15.0), atol=1e-4)
    half = sample_cameras(config, torch.Generator().manual_seed(0), fraction=0.25)
    assert 80.0 < half.azimuth_deg.max() <= 90.0
    full = sample_cameras(config, torch.Generator().manual_seed(0), fraction=0.5)
    assert torch.equal(
        full.c2w, sample_cameras(STILL_64, torch.Generator().manual_seed(0), fraction=0.0).c2w
    )


STILL_64 = replace(STILL, batch_size=64)


def test_open_range_interpolates_both_ends():
    assert open_range((-10.0, 45.0), 15.0, 0.0) == (15.0, 15.0)
    assert open_range((-10.0, 45.0), 15.0, 1.0) == (-10.0, 45.0)
    assert open_range((-10.0, 46.0), 15.0, 0.5) == (2.5, 30.5)


def test_milestones_change_image_and_batch_size(generator):
    config = RandomCamerasConfig(
        milestones=(ResolutionMilestone(0.5, 96, 80, 2), ResolutionMilestone(0.8, 128, 128, 1))
    )
    sizes = [
        (len(c), c.height, c.width)
        for c in (sample_cameras(config, generator, fraction=f) for f in (0.0, 0.49, 0.5, 0.9))
    ]
    assert sizes == [(4, 64, 64), (4, 64, 64), (2, 96, 80), (1, 128, 128)]


@pytest.mark.parametrize("config", [RandomCamerasConfig, MultiViewCamerasConfig])
def test_milestones_out_of_order_are_refused(config):
    early, late = ResolutionMilestone(0.2, 96, 96, 4), ResolutionMilestone(0.6, 128, 128, 4)
    assert config(milestones=(early, late)).milestones == (early, late)
    for wrong in ((late, early), (early, early)):
        with pytest.raises(ValueError, match="expected ascending from_fraction"):
            config(milestones=wrong)
    with pytest.raises(ValueError, match=r"from_fraction is 1\.5"):
        ResolutionMilestone(1.5, 96, 96, 4)


def test_dreamfusion_light_keeps_its_distance_and_leans_to_the_camera(generator):
    position = torch.tensor([[2.0, 0.0, 0.0]]).expand(5000, 3)
    light = place_light(DreamFusionLightConfig(), position, generator)
    distance = light.norm(dim=-1)
    assert 0.8 <= distance.min() < distance.max() <= 1.5
    assert float(light[:, 0].mean()) > 0.7
    assert float(light[:, 1:].mean()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("elevation_deg", [-89.0, 0.0, 40.0, 90.0])
def test_magic3d_light_is_within_60_degrees_of_the_view(elevation_deg, generator):
    direction = directions_from_angles(torch.tensor([30.0]), torch.tensor([elevation_deg]))
    light = place_light(Magic3DLightConfig(), 2.0 * direction.expand(5000, 3), generator)
    angle = torch.rad2deg(torch.acos((light * direction).sum(-1) / light.norm(dim=-1)))
    assert float(angle.max()) <= 60.01
    assert float(angle.mean()) == pytest.approx(30.0, abs=1.0)


def test_multiview_groups_are_orthogonal_and_share_the_rest(generator):
    config = MultiViewCamerasConfig(batch_size=8)
    cameras = sample_cameras(config, generator, fraction=1.0)
    turns = torch.remainder(cameras.azimuth_deg.view(2, 4).diff(dim=1), 360.0)
    assert torch.allclose(turns, torch.full((2, 3), 90.0), atol=1e-3)
    for shared in (cameras.elevation_deg, cameras.fovy, cameras.camera_distance):
        assert torch.equal(shared.view(2, 4), shared.view(2, 4)[:, :1].expand(2, 4))
    light = cameras.light_position.view(2, 4, 3)
    assert torch.equal(light, light[:, :1].expand(2, 4, 3))
    assert not torch.equal(cameras.azimuth_deg[:4], cameras.azimuth_deg[4:])


def test_multiview_apparent_size_does_not_depend_on_the_field_of_view(generator):
    config = MultiViewCamerasConfig(batch_size=32, relative_distance_range=(0.9, 0.9))
    cameras = sample_cameras(config, generator, fraction=1.0)
    assert cameras.fovy.max() > 1.5 * cameras.fovy.min()
    share = 1.0 / (cameras.camera_distance * torch.tan(0.5 * cameras.fovy))
    assert torch.allclose(share, torch.full((32,), 1 / 0.9), atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomCamerasConfig(distance_range=(2.0, 1.0)), r"distance_range is \[2.0, 1.0\]"),
        (lambda: RandomCamerasConfig(fovy_deg_range=(0.0, 60.0)), "between 1 and 170"),
        (lambda: RandomCamerasConfig(batch_size=0), "batch_size is 0"),
        (lambda: MultiViewCamerasConfig(batch_size=6), "multiple of n_views"),
    ],
)
def test_bad_configs_say_what_to_change(build, message):
    with pytest.raises(ValueError, match=message):
        build()
