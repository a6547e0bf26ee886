"""The automatic threshold against closed forms of opacity."""

from __future__ import annotations

import math

import pytest
import torch

from renderers.errors import EmptyGeometry
from renderers.grid_sampling import sample_grid
from renderers.threshold import choose_threshold, fallback_threshold, probe_density
from tests.studio.export.analytic_fields import Ball, Glow


def grid_of(field, resolution: int = 48, radius: float = 1.0) -> torch.Tensor:
    corner = torch.full((3,), radius)
    return sample_grid(field.density, -corner, corner, resolution)


def test_probe_sees_the_closed_form_of_a_glow():
    """The ray through the centre: 1 - exp(-peak s sqrt(2 pi))."""
    field = Glow(peak=3.0, s=0.2)
    probe = probe_density(grid_of(field), radius=1.0)
    expected = 1.0 - math.exp(-3.0 * 0.2 * math.sqrt(2.0 * math.pi))
    assert float(probe.opacity.max()) == pytest.approx(expected, abs=0.01)


def test_glow_is_cut_where_rays_turn_opaque():
    """A ray is half opaque where its densest sample is ln 2 / (s sqrt(2 pi)); the soft
    intersection over union puts the best cut at an opacity between a third and a half."""
    score = choose_threshold(grid_of(Glow(peak=200.0, s=0.25)), radius=1.0)
    half = math.log(2.0) / (0.25 * math.sqrt(2.0 * math.pi))
    assert 0.4 * half < score.threshold < 1.3 * half
    assert score.silhouette_iou > 0.75


def test_hard_edge_gives_a_level_well_inside_the_step():
    score = choose_threshold(grid_of(Ball(0.5)), radius=1.0)
    assert 1.0 < score.threshold < 90.0
    assert score.silhouette_iou > 0.93
    assert score.depth_error < 0.05


def test_units_do_not_matter():
    """A scene of half the size with twice the density looks the same."""
    density = grid_of(Glow(peak=60.0, s=0.3))
    one = choose_threshold(density, radius=1.0)
    other = choose_threshold(2.0 * density, radius=0.5)
    assert other.threshold == pytest.approx(2.0 * one.threshold, rel=1e-5)
    assert other.silhouette_iou == pytest.approx(one.silhouette_iou, rel=1e-5)


def test_fog_around_the_object_does_not_become_surface():
    density = grid_of(Ball(0.4)) + 0.05
    score = choose_threshold(density, radius=1.0)
    assert score.threshold > 0.5


@pytest.mark.parametrize("fog", [0.2, 0.5, 1.0, 5.0])
def test_the_level_lies_above_fog_that_fills_the_scene(fog):
    """Rays turn opaque in thick fog, so the box of the scene is what agrees best with them."""
    density = grid_of(Ball(0.4)) + fog
    score = choose_threshold(density, radius=1.0)
    assert fog < score.threshold < fog + 100.0
    assert score.rule == "silhouettes"


def test_where_no_level_of_the_ladder_is_in_range_the_densest_part_is_taken():
    """The highest level that is tried is 0.95 times the maximum."""
    density = 10.0 + 0.1 * torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(0))
    score = choose_threshold(density, radius=1.0)
    assert score.rule == "percentile"
    assert 0.0 < float((density > score.threshold).float().mean()) < 0.01


def test_the_fall_back_has_densities_on_both_sides():
    rare = torch.zeros(10, 10, 10)
    rare[5, 5, :4] = 3.0  # less than half a percent
    assert fallback_threshold(rare) == ("half maximum", 1.5)
    many = torch.linspace(0.0, 1.0, 1000).view(10, 10, 10)
    rule, level = fallback_threshold(many)
    assert rule == "percentile"
    assert int((many > level).sum()) == 5
    assert fallback_threshold(torch.full((10, 10, 10), 2.0)) is None
    assert fallback_threshold(torch.zeros(10, 10, 10)) is None


def test_an_even_density_is_no_object_and_automatic_is_not_what_to_try():
    with pytest.raises(EmptyGeometry) as error:
        choose_threshold(torch.full((9, 9, 9), 10.0), radius=1.0)
    assert "about equally dense (density min 10, mean 10, max 10)" in str(error.value)
    assert "auto" not in str(error.value)


@pytest.mark.parametrize("density", [torch.zeros(9, 9, 9), torch.full((9, 9, 9), 0.01)])
def test_nothing_visible_names_the_range(density):
    with pytest.raises(EmptyGeometry) as error:
        choose_threshold(density, radius=1.0)
    assert "density min" in str(error.value)
    assert "mean" in str(error.value)
    assert "--threshold" in str(error.value)
