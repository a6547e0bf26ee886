"""Hash-grid fields: initial shapes, normals, coarse-to-fine levels and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from renderers.configs import (
    AnalyticNormalsConfig,
    DreamFusionBlobConfig,
    FiniteDifferenceNormalsConfig,
    HashGridConfig,
    HashSDFConfig,
    HashVolumeConfig,
    NoBlobConfig,
    PredictedNormalsConfig,
    ProgressiveBandsConfig,
)
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.hash_volume import HashVolumeField
from renderers.fields.mlp import CPU_CHUNK_ROWS, ReluMLP, in_row_chunks

GRID = HashGridConfig(n_levels=4, log2_hashmap_size=10, base_resolution=4, finest_resolution=32)
VOLUME = HashVolumeConfig(grid=GRID)
SDF = HashSDFConfig(grid=GRID)
CONFIGS = [
    VOLUME,
    replace(VOLUME, heads="joint", hidden_layers=2, blob=DreamFusionBlobConfig()),
    SDF,
    replace(SDF, heads="joint", semi_axes=(0.6, 0.4, 0.3)),
]


def build(config, *, rough: bool = False, seed: int = 0):
    """A field in float64; ``rough`` gives it a table that matters."""
    kind = HashSDFField if isinstance(config, HashSDFConfig) else HashVolumeField
    field = kind(config, torch.Generator().manual_seed(seed)).double()
    if rough:
        with torch.no_grad():
            field.grid.table.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed + 1))
    return field


def points(n: int, radius: float = 0.9, seed: int = 5) -> torch.Tensor:
    unit = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * unit - 1) * radius


def test_fresh_volume_is_the_magic3d_blob():
    x = points(500)
    expected = torch.nn.functional.softplus(10 * (1 - x.norm(dim=-1) / 0.5))
    assert torch.allclose(build(VOLUME).density(x), expected, atol=1e-3)


def test_fresh_dreamfusion_blob_is_dense_inside_and_empty_outside():
    field = build(replace(VOLUME, blob=DreamFusionBlobConfig()))
    x = torch.tensor([[0.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.9, 0.0, 0.0]]).double()
    expected = [5.0067, math.log1p(math.exp(10 * math.exp(-0.5) - 5)), 0.0067]
    assert torch.allclose(field.density(x), torch.tensor(expected).double(), atol=1e-3)


def test_field_without_blob_is_uniform():
    density = build(replace(VOLUME, blob=NoBlobConfig(bias=-1.0))).density(points(100))
    assert torch.allclose(density, torch.full_like(density, math.log1p(math.exp(-1))), atol=1e-3)


def test_fresh_albedo_is_grey():
    samples = build(VOLUME).query(points(100))
    assert torch.allclose(samples.albedo, torch.full_like(samples.albedo, 0.5), atol=1e-3)


def test_fresh_sdf_is_a_sphere():
    x = points(500)
    assert torch.allclose(build(SDF).sdf(x), x.norm(dim=-1) - 0.5, atol=1e-3)


def test_fresh_ellipsoid_vanishes_on_its_surface_and_is_1_lipschitz():
    axes = torch.tensor([0.6, 0.4, 0.3]).double()
    field = build(replace(SDF, semi_axes=(0.6, 0.4, 0.3)))
    on_surface = torch.nn.functional.normalize(points(200), dim=-1) * axes
    assert torch.allclose(field.sdf(on_surface), torch.zeros(200).double(), atol=1e-3)
    assert (field.sdf(0.9 * on_surface) < 0).all()
    assert (field.initial_gradient(points(200)).norm(dim=-1) <= 1 + 1e-9).all()


def test_volsdf_density_has_the_closed_form_of_the_laplace_distribution():
    field = build(replace(SDF, initial_beta=0.1))
    distance = torch.tensor([-5.0, 0.0, 0.1, 5.0]).double()
    expected = torch.tensor([1.0, 0.5, 0.5 * math.exp(-1), 0.0]).double() / 0.1
    assert torch.allclose(field.density_of(distance), expected, atol=1e-6)
    assert field.beta.item() == pytest.approx(0.1)


@pytest.mark.parametrize("config", [VOLUME, SDF])
def test_fresh_normals_point_outwards(config):
    x = points(300)
    normal = build(config).query_with_normals(x).normal
    assert torch.allclose(normal, x / x.norm(dim=-1, keepdim=True), atol=2e-2)


@pytest.mark.parametrize("config", CONFIGS)
def test_analytic_normals_and_their_training_gradient_match_double_backward(config):
    field, x = build(config, rough=True), points(200).requires_grad_()
    weights = torch.randn(200, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = [p for p in field.parameters() if p is not getattr(field, "log_beta", None)]

    normal = field.query_with_normals(x.detach()).normal
    gradients = torch.autograd.grad((normal * weights).sum(), parameters, allow_unused=True)

    potential = field.potential(x)
    (slope,) = torch.autograd.grad(potential.sum(), x, create_graph=True)
    expected = field.outward_sign * torch.nn.functional.normalize(slope, dim=-1)
    reference = torch.autograd.grad((expected * weights).sum(), parameters, allow_unused=True)

    assert torch.allclose(normal, expected, atol=1e-9)
    used = [(a, b) for a, b in zip(gradients, reference, strict=True) if b is not None]
    assert len(used) >= 3
    for ours, theirs in used:
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS)
def test_queries_agree_with_each_other(config):
    field, x = build(config, rough=True), points(100)
    plain, full = field.query(x), field.query_with_normals(x)
    assert plain.normal is None
    assert torch.allclose(plain.sigma, full.sigma)
    assert torch.allclose(plain.albedo, full.albedo)
    assert torch.allclose(plain.sigma, field.density(x))
    assert torch.allclose(plain.albedo, field.albedo(x))
    assert ((plain.albedo > 0) & (plain.albedo < 1)).all()


def test_finite_differences_approach_the_analytic_normal():
    smooth = FiniteDifferenceNormalsConfig(epsilon=1e-5)
    x = points(400)
    exact = build(VOLUME, rough=True).query_with_normals(x).normal
    approximate = build(replace(VOLUME, normals=smooth), rough=True).query_with_normals(x).normal
    # Taps on both sides of a cell wall or of a ReLU kink see two slopes; they are rare.
    close = (exact * approximate).sum(-1) > 1 - 1e-6
    assert close.double().mean() > 0.98


def test_predicted_normals_are_unit_trainable_and_start_at_the_blob():
    config = replace(VOLUME, normals=PredictedNormalsConfig())
    x = points(100)
    normal = build(config).query_with_normals(x).normal
    assert torch.allclose(normal, x / x.norm(dim=-1, keepdim=True), atol=2e-2)
    field = build(config, rough=True)
    normal = field.query_with_normals(x).normal
    assert torch.allclose(normal.norm(dim=-1), torch.ones(100).double())
    normal[:, 0].sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in field.normal_head.weights)


def test_only_distances_report_their_gradient():
    x = points(50)
    assert build(VOLUME).query_with_normals(x).gradient is None
    gradient = build(SDF).query_with_normals(x).gradient
    assert torch.allclose(gradient.norm(dim=-1), torch.ones(50).double(), atol=2e-2)


def test_normal_is_finite_where_the_gradient_vanishes():
    normal = build(VOLUME).query_with_normals(torch.zeros(1, 3).double()).normal
    assert normal.isfinite().all()


@pytest.mark.parametrize("config", [VOLUME, SDF])
def test_progressive_bands_change_nothing_when_all_are_open(config):
    bands = ProgressiveBandsConfig(start_levels=1, start_fraction=0.1, end_fraction=0.6)
    plain, banded = build(config, rough=True), build(replace(config, bands=bands), rough=True)
    x = points(100)
    for fraction in (0.6, 1.0):
        banded.set_fraction(fraction)
        ours, theirs = banded.query_with_normals(x), plain.query_with_normals(x)
        assert torch.equal(ours.sigma, theirs.sigma)
        assert torch.equal(ours.albedo, theirs.albedo)
        assert torch.equal(ours.normal, theirs.normal)


def test_closed_bands_are_silent_in_value_and_gradient():
    bands = ProgressiveBandsConfig(start_levels=2, start_fraction=0.5, end_fraction=0.9)
    field = build(replace(VOLUME, bands=bands), rough=True)
    field.set_fraction(0.5)
    samples = field.query_with_normals(points(200))
    (samples.sigma.sum() + samples.normal.sum() + samples.albedo.sum()).backward()
    first_closed = field.grid.layout.offsets[2]
    gradient = field.grid.table.grad
    assert gradient[:first_closed].abs().sum() > 0
    assert gradient[first_closed:].abs().sum() == 0


def test_bands_open_monotonically_and_survive_a_checkpoint():
    bands = ProgressiveBandsConfig(start_levels=1, start_fraction=0.0, end_fraction=1.0)
    config = replace(VOLUME, bands=bands)
    field = build(config)
    sums = []
    for fraction in (0.0, 0.3, 0.6, 1.0):
        field.set_fraction(fraction)
        sums.append(float(field.level_mask.sum()))
    assert sums == sorted(sums)
    assert (sums[0], sums[-1]) == (2.0, 8.0)
    field.set_fraction(0.3)
    other = build(config, seed=9)
    other.load_state_dict(field.state_dict())
    assert torch.equal(other.density(points(50)), field.density(points(50)))


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_reach_every_parameter(config):
    field = build(config, rough=True)
    samples = field.query_with_normals(points(300))
    (samples.sigma.sum() + samples.normal.sum() + samples.albedo.square().sum()).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_parameter_groups_hold_every_parameter_once():
    groups = build(SDF).parameter_groups()
    assert set(groups) == {"grid", "network"}
    assert sum(len(group) for group in groups.values()) == len(list(build(SDF).parameters()))


@pytest.mark.parametrize("normals", [AnalyticNormalsConfig(), FiniteDifferenceNormalsConfig()])
def test_float32_agrees_with_float64(normals):
    config = replace(VOLUME, normals=normals)
    exact, x = build(config, rough=True), points(300)
    single = build(config, rough=True).float()
    ours, theirs = single.query_with_normals(x.float()), exact.query_with_normals(x)
    assert torch.allclose(ours.sigma.double(), theirs.sigma, rtol=1e-3, atol=1e-4)
    assert torch.allclose(ours.albedo.double(), theirs.albedo, atol=1e-4)
    agree = (ours.normal.double() * theirs.normal).sum(-1) > 0.999
    assert agree.double().mean() > 0.95


def test_same_seed_gives_the_same_field():
    x = points(50)
    assert torch.equal(build(VOLUME, seed=4).density(x), build(VOLUME, seed=4).density(x))
    assert not torch.equal(build(VOLUME, seed=4).density(x), build(VOLUME, seed=5).density(x))


def test_network_input_gradient_matches_autograd(generator):
    network = ReluMLP((5, 8, 8, 2), generator=generator).double()
    x = torch.randn(30, 5, generator=generator, dtype=torch.float64).requires_grad_()
    output, gradient = network.with_input_gradient(x)
    (expected,) = torch.autograd.grad(network(x)[:, 0].sum(), x)
    assert torch.allclose(output, network(x))
    assert torch.allclose(gradient, expected)


def test_row_chunks_equal_one_pass(generator):
    x = torch.randn(CPU_CHUNK_ROWS + 17, 3, generator=generator)
    (chunked,) = in_row_chunks(lambda rows: (rows * 2 + 1,), x)
    assert torch.equal(chunked, x * 2 + 1)
