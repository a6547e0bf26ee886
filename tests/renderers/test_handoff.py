"""The way from a field to a mesh against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor

from renderers.configs import HashSDFConfig, HashVolumeConfig, NoBlobConfig
from renderers.errors import EmptyGeometry
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.hash_volume import HashVolumeField
from renderers.handoff import REACH, SUBSAMPLES, distance_in_cells, field_to_tets, find_level
from renderers.mesh import Mesh
from renderers.mesh_configs import GridTetsConfig
from tests.renderers.solid_fields import (
    DENSITY,
    SMALL_GRID,
    Ball,
    Box,
    Shapes,
    Solid,
    Torus,
    sdf_ball,
)

CONFIG = GridTetsConfig(resolution=48, threshold=0.5 * DENSITY)
AUTOMATIC = GridTetsConfig(resolution=32)


def rounded_box(grown: float) -> trimesh.Trimesh:
    """The box with everything that is within ``grown`` of it."""
    box = trimesh.creation.box((0.6, 0.9, 0.4))
    if not grown:
        return box
    ball = trimesh.creation.icosphere(subdivisions=3, radius=grown).vertices
    return trimesh.convex.convex_hull((box.vertices[:, None] + ball).reshape(-1, 3))


# The solids grown by a distance; the box's by Steiner's formula.
VOLUMES = {
    Ball: lambda grown: 4 / 3 * math.pi * (0.5 + grown) ** 3,
    Box: lambda grown: 0.216 + 2.28 * grown + math.pi * 1.9 * grown**2 + 4 / 3 * math.pi * grown**3,
    Torus: lambda grown: 2 * math.pi**2 * 0.5 * (0.18 + grown) ** 2,
}
TRUTH = {
    Ball: lambda grown: trimesh.creation.icosphere(subdivisions=5, radius=0.5 + grown),
    Box: rounded_box,
    Torus: lambda grown: trimesh.creation.torus(
        0.5, 0.18 + grown, major_sections=96, minor_sections=48
    ),
}


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(
        mesh.v_pos.detach().numpy(), mesh.t_pos_idx.numpy(), process=False, validate=False
    )


def chamfer(a: trimesh.Trimesh, b: trimesh.Trimesh) -> float:
    """Half the sum over both ways of the mean distance (not squared) to the other surface.

    The convention of `studio.evaluation.metrics_geometry`, in world units; sampled densely.
    """
    p, q = (trimesh.sample.sample_surface(mesh, 20_000, seed=0)[0] for mesh in (a, b))
    return 0.5 * float(cKDTree(p).query(q)[0].mean() + cKDTree(q).query(p)[0].mean())


def distance_of_the_level(field: Solid, threshold: float | Literal["auto"]) -> float:
    """How far outside of half its density a solid ends: dense ones with a soft edge look larger."""
    if not field.width:
        return 0.0
    return field.width * math.log(field.peak / find_level(field, threshold).threshold - 1)


@pytest.mark.parametrize("shape", [Ball, Box, Torus])
@pytest.mark.parametrize("width", [0.0, 0.02])
@pytest.mark.parametrize("threshold", ["auto", 0.5 * DENSITY])
def test_a_solid_becomes_a_closed_outward_mesh_within_a_cell(shape, width, threshold):
    field = shape(width=width)
    tets = field_to_tets(field, replace(CONFIG, threshold=threshold))
    grown = distance_of_the_level(field, threshold)
    mesh = as_trimesh(tets.mesh())
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(VOLUMES[shape](grown), rel=0.05)
    assert chamfer(mesh, TRUTH[shape](grown)) < tets.cell_size


@pytest.mark.parametrize("shape", [Ball, Box, Torus])
def test_vertices_lie_on_the_level_set(shape):
    field = shape()
    tets = field_to_tets(field, CONFIG)
    error = field.distance(tets.mesh().v_pos.detach()) / tets.cell_size
    assert error.abs().mean() < 0.25
    assert error.abs().max() < 1.0  # reached at the edges of the box, which are rounded


def test_a_distance_field_becomes_the_same_mesh():
    tets = field_to_tets(sdf_ball(), CONFIG)
    mesh = as_trimesh(tets.mesh())
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(VOLUMES[Ball](0.0), rel=0.03)
    assert chamfer(mesh, TRUTH[Ball](0.0)) < tets.cell_size


def test_the_automatic_threshold_finds_a_hard_edge():
    level = find_level(Ball(), "auto")
    assert level.rule == "silhouettes"
    assert 0 < level.threshold < DENSITY


def test_the_automatic_threshold_cuts_a_soft_edge_where_rays_turn_opaque():
    field = Ball(width=0.02)
    closest = field.r + distance_of_the_level(field, "auto")
    ray = torch.linspace(-1.0, 1.0, 4001)[:, None] * torch.tensor([1.0, 0.0, 0.0])
    sigma = field.density(ray + torch.tensor([0.0, 0.0, closest]))
    opacity = 1.0 - math.exp(-float(sigma.sum()) * 2.0 / 4000)
    assert 0.3 < opacity < 0.7  # the levels that are tried are 27 % apart


def test_colours_are_equal_at_the_switch():
    field = Ball()
    tets = field_to_tets(field, CONFIG)
    x = 2 * torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) - 1
    x = torch.cat([x, tets.mesh().v_pos.detach()])
    expected = field.albedo(x)
    assert expected.std() > 0.05
    assert torch.equal(tets.albedo(x), expected)


def test_training_the_mesh_leaves_the_field_alone():
    field = Ball()
    before = {name: value.clone() for name, value in field.state_dict().items()}
    tets = field_to_tets(field, CONFIG)
    with torch.no_grad():
        for parameter in tets.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in field.state_dict().items())


# --- signed distances -----------------------------------------------------------------------------


def coverage_of_a_half_space(normal: Tensor, offset: float, n: int = 24) -> Tensor:
    """Mean of the indicator over cells of unit size, by 16^3 samples each."""
    steps = (torch.arange(16, dtype=torch.float64) + 0.5) / 16 - 0.5
    subs = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).view(-1, 3)
    side = subs @ normal
    axis = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    centres = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1) @ normal - offset
    near = centres.abs() < 1.0
    values = torch.where(centres > 0, 1.0, -1.0).double()
    inside = (centres[near][:, None] + side < 0).double().mean(1)
    values[near] = 1 - 2 * inside
    return values


@pytest.mark.parametrize("offset", [0.0, 0.15, 0.37, 0.5])
@pytest.mark.parametrize("direction", [(1, 0, 0), (1, 1, 0), (1, 2, 3)])
@pytest.mark.parametrize(("smoothing", "tolerance"), [(1.0, 0.06), (1.5, 0.04)])
def test_distances_to_a_plane_are_right_near_it(offset, direction, smoothing, tolerance):
    normal = torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float64), dim=0)
    n = 24
    found = distance_in_cells(coverage_of_a_half_space(normal, offset, n), smoothing)
    axis = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    true = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1) @ normal - offset
    # Away from the array's ends, where the blur repeats the border.
    inner = (slice(6, -6),) * 3
    found, true = found[inner].double(), true[inner]
    bounded = REACH * torch.tanh(true / REACH)
    error = (found - bounded).abs()
    assert error[true.abs() < 1.0].max() < tolerance
    # Farther out the cube's box shape tells from a Gaussian of the same variance.
    assert error[true.abs() < 2.0].max() < 0.15
    assert found.abs().max() <= REACH


def test_distances_do_not_depend_on_how_steep_or_dense_the_field_is():
    """The same level set, through a step, a soft edge and fog, thin and thick."""
    fields = [Ball(), Ball(width=0.03), Ball(width=0.1), Ball(width=0.03, density=3.0)]
    distances = [field_to_tets(f, CONFIG, threshold=0.5 * f.peak).sdf.detach() for f in fields]
    for other in distances[1:]:
        torch.testing.assert_close(other, distances[0], atol=1e-5, rtol=0)


def test_a_curved_surface_moves_by_the_variance_over_its_radius():
    tets = field_to_tets(Ball(r=0.4), GridTetsConfig(resolution=32, smoothing=1.5), threshold=50.0)
    radius = 0.4 / tets.cell_size
    shift = tets.mesh().v_pos.detach().norm(dim=1).mean() / tets.cell_size - radius
    assert shift.item() == pytest.approx(-(1.5**2 + 1 / 12) / radius, abs=0.04)


def test_distances_grow_by_one_per_cell_across_the_surface():
    tets = field_to_tets(Ball(), CONFIG)
    n = CONFIG.resolution + 1
    grid = tets.sdf.detach().view(n, n, n)
    slope = torch.stack(torch.gradient(grid)).norm(dim=0)
    assert slope[grid.abs() < 0.5].mean().item() == pytest.approx(1.0, abs=0.05)


def test_positions_are_right_to_half_a_subsample():
    """An axis-aligned face between two grid points is the worst case."""
    field = Box()
    tets = field_to_tets(field, CONFIG)
    v_pos = tets.mesh().v_pos.detach()
    top = v_pos[(v_pos[:, :2].abs() < 0.15).all(1) & (v_pos[:, 2] > 0)]
    assert len(top) > 100
    error = (top[:, 2] - 0.2).abs().max() / tets.cell_size
    assert error < 0.5 / SUBSAMPLES + 0.03


# --- the box, floaters, cavities ------------------------------------------------------------------


def test_the_grid_is_a_cube_around_the_object_with_a_tenth_to_spare():
    tets = field_to_tets(Ball(r=0.2, centre=(0.5, -0.3, 0.1)), CONFIG)
    torch.testing.assert_close(tets.centre, torch.tensor([0.5, -0.3, 0.1]), atol=0.02, rtol=0)
    assert 1.1 * 0.2 <= tets.half_size <= 1.1 * (0.2 + 2 / 64)


def test_a_floater_does_not_stretch_the_grid():
    field = Shapes(Ball(r=0.4), Ball(r=0.06, centre=(0.85, 0.85, 0.85)))
    assert field_to_tets(field, CONFIG).half_size < 1.1 * (0.4 + 2 / 64)
    kept = GridTetsConfig(resolution=48, min_component=0.0, threshold=50.0)
    assert field_to_tets(field, kept).half_size > 0.65


def test_the_grid_stays_inside_the_scene():
    tets = field_to_tets(Ball(r=0.5, centre=(0.6, 0.0, 0.0)), CONFIG)
    assert (tets.centre.abs() + tets.half_size <= 1.0 + 1e-6).all()
    assert as_trimesh(tets.mesh()).is_watertight  # cut and closed at the wall


def test_floaters_are_left_out_and_cavities_filled():
    class Hollow(Ball):
        def distance(self, x: Tensor) -> Tensor:
            return (x.norm(dim=-1) - 0.3).abs() - 0.1

    field = Shapes(Hollow(), Ball(r=0.08, centre=(0.7, 0.7, 0.7)))
    mesh = as_trimesh(field_to_tets(field, CONFIG).mesh())
    assert mesh.body_count == 1
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.05)
    kept = GridTetsConfig(resolution=48, min_component=0.0, threshold=50.0)
    assert as_trimesh(field_to_tets(field, kept).mesh()).body_count == 2


# --- nothing to make a mesh of --------------------------------------------------------------------


def test_fog_that_no_silhouette_shows_is_cut_by_its_densest_part():
    field = Ball(width=0.1, density=0.1)
    level = find_level(field, "auto")
    assert level.rule == "percentile"
    assert as_trimesh(field_to_tets(field, AUTOMATIC).mesh()).is_watertight


def test_fog_that_fills_the_scene_stays_outside_of_the_mesh():
    class Foggy(Ball):
        def density(self, x: Tensor) -> Tensor:
            return super().density(x) + 0.5

    level = find_level(Foggy(width=0.02), "auto")
    assert level.rule == "silhouettes"
    assert 0.5 < level.threshold < DENSITY
    assert 0 < level.inside.sum() < 0.3 * level.inside.numel()


class Torn(Ball):
    """A ball whose density is a given value in a small part of it."""

    def __init__(self, value: float, *, torn: float) -> None:
        super().__init__()
        self.value, self.torn = value, torn

    def density(self, x: Tensor) -> Tensor:
        at = (x - torch.tensor([0.51, 0.02, 0.017])).norm(dim=-1) < self.torn
        return torch.where(at, self.value, super().density(x))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("threshold", ["auto", 0.5 * DENSITY])
@pytest.mark.parametrize("torn", [0.2, 0.012])
def test_a_density_that_is_no_number_somewhere_is_refused(value, threshold, torn):
    """In the search over the scene, and where only the mesh's own finer points meet it."""
    with pytest.raises(EmptyGeometry, match=r"its density is NaN or infinite at \d+ of \d+ points"):
        field_to_tets(Torn(value, torn=torn), replace(CONFIG, threshold=threshold))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("torn", [0.2, 0.012])
def test_a_distance_that_is_no_number_somewhere_is_refused(value, torn):
    field = sdf_ball()
    whole = field.sdf

    def sdf(x: Tensor) -> Tensor:
        at = (x - torch.tensor([0.51, 0.02, 0.017])).norm(dim=-1) < torn
        return torch.where(at, value, whole(x))

    field.sdf = sdf
    with pytest.raises(EmptyGeometry, match=r"its signed distance is NaN or infinite at \d+ of"):
        field_to_tets(field, CONFIG)


def test_an_empty_field_is_refused_with_its_range():
    config = HashVolumeConfig(grid=SMALL_GRID, blob=NoBlobConfig(bias=-20.0))
    field = HashVolumeField(config, torch.Generator().manual_seed(0))
    with pytest.raises(EmptyGeometry) as error:
        field_to_tets(field, AUTOMATIC)
    text = str(error.value)
    assert "density min 2.06e-09, mean 2.06e-09, max 2.06e-09" in text
    assert "Train the stage before for more steps" in text


@pytest.mark.parametrize("threshold", [1e-9, 1e4])
def test_a_given_threshold_outside_the_range_is_refused_and_not_replaced(threshold):
    with pytest.raises(EmptyGeometry, match=r"at threshold 1e[-+]\d\d all .*\(density min"):
        field_to_tets(Ball(width=0.1), CONFIG, threshold=threshold)


def test_a_distance_field_without_a_surface_is_refused():
    config = HashSDFConfig(grid=SMALL_GRID, semi_axes=(9.0, 9.0, 9.0))
    field = HashSDFField(config, torch.Generator().manual_seed(0))
    with pytest.raises(EmptyGeometry, match=r"everything is inside \(signed distance min -9"):
        field_to_tets(field, CONFIG)


def test_a_sheet_thinner_than_the_smoothing_says_what_to_change():
    class Sheet(Ball):
        def distance(self, x: Tensor) -> Tensor:
            return torch.maximum(x[:, :2].norm(dim=1) - 0.8, x[:, 2].abs() - 0.017)

    with pytest.raises(EmptyGeometry, match=r"thinner than its smoothing of 2\.0 cubes"):
        field_to_tets(Sheet(), GridTetsConfig(resolution=48, smoothing=2.0), threshold=50.0)
    fine = GridTetsConfig(resolution=80, smoothing=0.5)
    assert field_to_tets(Sheet(), fine, threshold=50.0).mesh().n_faces


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1}, "resolution is 1"),
        ({"smoothing": 0.0}, "smoothing is 0.0"),
        ({"threshold": -1.0}, "threshold is -1.0, expected auto or a density"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GridTetsConfig(**options)
