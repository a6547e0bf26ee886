"""Surfaces of fields whose shape is known, and the errors of fields that have none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from renderers.grid_sampling import sample_grid
from studio.errors import Diverged, EmptyGeometry
from studio.export.configs import ExportConfig
from studio.export.surface import extract_surface
from studio.export.triangles import boundary_edges
from tests.studio.export.analytic_fields import Ball, Balls, DistanceBall, Glow

CONFIG = ExportConfig(resolution=48, search_resolution=32)
EXACT = ExportConfig(resolution=48, search_resolution=32, blur_cells=0.0)


def level_radius(threshold: float) -> float:
    """Where the density of ``Ball(0.5)`` has this value."""
    return 0.5 + 0.01 * np.log(100.0 / threshold - 1.0)


def test_ball_is_closed_outward_and_has_its_volume():
    surface = extract_surface(Ball(0.5), CONFIG)
    assert len(boundary_edges(surface.mesh)) == 0
    expected = Ball(level_radius(surface.threshold)).volume
    assert surface.mesh.volume() == pytest.approx(expected, rel=0.03)


def test_without_blur_vertices_lie_on_the_level_set():
    surface = extract_surface(Ball(0.5), EXACT)
    radii = np.linalg.norm(surface.mesh.v_pos, axis=1)
    # Vertices within the margin of a grid point stay there.
    error = np.abs(radii - level_radius(surface.threshold)) / surface.cell
    assert np.percentile(error, 95) < 0.02
    assert error.max() < 0.05


def test_distance_field_is_cut_at_zero():
    surface = extract_surface(DistanceBall(0.4), EXACT)
    radii = np.linalg.norm(surface.mesh.v_pos, axis=1)
    assert surface.threshold == 0.0
    assert surface.level is None
    np.testing.assert_allclose(radii, 0.4, atol=0.05 * surface.cell)


def test_given_threshold_is_the_level():
    field = Glow(peak=40.0, s=0.25)
    config = ExportConfig(resolution=48, search_resolution=32, blur_cells=0.0, threshold=10.0)
    surface = extract_surface(field, config)
    true_radius = 0.25 * np.sqrt(2.0 * np.log(4.0))
    radii = np.linalg.norm(surface.mesh.v_pos, axis=1)
    np.testing.assert_allclose(radii, true_radius, atol=0.05 * surface.cell)


def test_small_object_gets_the_full_resolution():
    small, large = (extract_surface(Ball(r), CONFIG) for r in (0.12, 0.8))
    assert small.cell < 0.3 * large.cell
    assert len(small.mesh.t_pos_idx) > 0.4 * len(large.mesh.t_pos_idx)


def test_object_cut_by_the_scene_is_closed():
    surface = extract_surface(Ball(0.5, centre=(0.9, 0.0, 0.0)), CONFIG)
    assert len(boundary_edges(surface.mesh)) == 0
    assert surface.mesh.v_pos[:, 0].max() <= 1.0 + 1e-6


@dataclass
class RoughBall(Ball):
    """A ball whose density is noisy, as that of a hash grid is."""

    def density(self, x: torch.Tensor) -> torch.Tensor:
        noise = 0.02 * torch.sin(97.0 * x).prod(-1)
        return 100.0 * torch.sigmoid((self.r - x.norm(dim=-1) + noise) / 0.01)


def test_blur_takes_the_noise_out_of_the_surface():
    rough, smooth = (extract_surface(RoughBall(), config) for config in (EXACT, CONFIG))
    spread = [np.linalg.norm(s.mesh.v_pos, axis=1).std() for s in (rough, smooth)]
    assert spread[1] < 0.5 * spread[0]


def test_all_triangles_have_area():
    surface = extract_surface(Ball(0.5), EXACT)
    assert surface.mesh.areas().min() > 1e-6 * surface.cell**2


def test_grid_is_sampled_x_first():
    values = sample_grid(
        lambda x: x @ torch.tensor([1.0, 10.0, 100.0]), torch.zeros(3), torch.ones(3), 4
    )
    assert values[4, 0, 0] == pytest.approx(1.0)
    assert values[0, 0, 2] == pytest.approx(50.0)


def test_threshold_above_the_density_names_the_range():
    config = ExportConfig(resolution=16, search_resolution=16, threshold=500.0)
    with pytest.raises(EmptyGeometry) as error:
        extract_surface(Ball(0.5), config)
    assert "threshold 500" in str(error.value)
    assert "max 100" in str(error.value)
    assert "--threshold auto" in str(error.value)


@dataclass
class FoggyBall(Ball):
    """A ball in fog that fills the scene, so that all rays are opaque."""

    fog: float = 1.0

    def density(self, x: torch.Tensor) -> torch.Tensor:
        return super().density(x) + self.fog


@pytest.mark.parametrize("fog", [0.5, 1.0, 5.0])
def test_automatic_threshold_lies_above_fog_that_fills_the_scene(fog):
    surface = extract_surface(FoggyBall(0.5, fog=fog), CONFIG)
    assert fog < surface.threshold < fog + 100.0
    assert surface.level is not None
    assert len(boundary_edges(surface.mesh)) == 0
    # The fog is not part of it, but for the outermost of the ball's soft edge.
    assert 1.0 <= surface.mesh.volume() / Ball(0.5).volume < 1.7


def test_even_density_is_no_surface_and_automatic_is_not_what_to_try():
    class Even(Ball):
        def density(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x[:, 0], 10.0)

    with pytest.raises(EmptyGeometry, match="about equally dense") as error:
        extract_surface(Even(), CONFIG)
    assert "auto" not in str(error.value)


def test_fog_is_no_surface():
    with pytest.raises(EmptyGeometry, match="most opaque ray reaches"):
        extract_surface(Glow(peak=0.05), CONFIG)


def test_distance_field_without_inside_says_so():
    with pytest.raises(EmptyGeometry, match="everything is outside"):
        extract_surface(DistanceBall(-1.0), CONFIG)


@dataclass
class TornBall(Ball):
    """A ball with values that are no numbers in a corner of the scene."""

    value: float = float("nan")

    def density(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.amin(-1) > 0.9, self.value, super().density(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_field_that_is_no_number_somewhere_says_where_it_failed(value):
    with pytest.raises(Diverged, match=r"NaN or infinite at \d+ of 35937 grid points"):
        extract_surface(TornBall(0.5, value=value), CONFIG)


def test_object_that_vanishes_in_the_blur_says_so():
    specks = Balls((((-0.9, -0.9, -0.9), 0.05, (1.0, 0, 0)), ((0.9, 0.9, 0.9), 0.05, (1.0, 0, 0))))
    config = ExportConfig(resolution=8, search_resolution=64, blur_cells=5.0, threshold=50.0)
    with pytest.raises(EmptyGeometry, match="blur_cells=0"):
        extract_surface(specks, config)
