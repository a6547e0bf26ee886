"""Volume rendering: closed forms, skipping that changes nothing, gradients, exact resume."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from renderers.backgrounds import build_background
from renderers.cameras import Cameras, orbit_cameras, sample_cameras
from renderers.configs import (
    AlbedoMaterialConfig,
    DiffuseMaterialConfig,
    HashGridConfig,
    HashSDFConfig,
    HashVolumeConfig,
    NeuralBackgroundConfig,
    NoBlobConfig,
    OccupancyConfig,
    RandomBackgroundConfig,
    RandomCamerasConfig,
    SolidBackgroundConfig,
    VolumeRendererConfig,
)
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.hash_volume import HashVolumeField
from renderers.fields.samples import FieldSamples
from renderers.materials import Shading
from renderers.regularizers import REGULARIZERS, compute_regularizers
from renderers.volume_renderer import VolumeRenderer

GRID = HashGridConfig(n_levels=4, log2_hashmap_size=10, base_resolution=4, finest_resolution=32)
DENSE = VolumeRendererConfig(
    samples_per_ray=64,
    eval_samples_per_ray=64,
    min_transmittance=0.0,
    min_alpha=0.0,
    max_samples=10**7,
    occupancy=OccupancyConfig(resolution=32),
)
LIT = Shading("diffuse", 0.1, 0.9)
SIZE = 24


class Sphere(nn.Module):
    """Constant density inside a ball, a colour per octant, radial normals."""

    radius = 1.0

    def __init__(self, sigma: float, ball: float = 0.5) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.tensor(sigma))
        self.ball = ball

    def set_fraction(self, fraction: float) -> None:
        """Nothing to adapt."""

    def density(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.norm(dim=-1) < self.ball, self.sigma, self.sigma * 0.0)

    def albedo(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(x.dtype) * 0.5 + 0.25

    def query(self, x: torch.Tensor) -> FieldSamples:
        return FieldSamples(self.density(x), self.albedo(x))

    def query_with_normals(self, x: torch.Tensor) -> FieldSamples:
        normal = nn.functional.normalize(x, dim=-1)
        return FieldSamples(self.density(x), self.albedo(x), normal)


def views(n: int = 2, size: int = SIZE, distance: float = 2.5) -> Cameras:
    return orbit_cameras(
        n, elevation_deg=20.0, distance=distance, fovy_deg=45.0, height=size, width=size + 4
    )


def renderer_for(field, config=DENSE, background=None, material=None) -> VolumeRenderer:
    background = background or SolidBackgroundConfig()
    seeded = torch.Generator().manual_seed(1)
    return VolumeRenderer(
        config,
        field,
        build_background(background, seeded),
        material or AlbedoMaterialConfig(),
    )


def hash_renderer(config=DENSE, field_config=None, seed: int = 0, **parts) -> VolumeRenderer:
    field_config = field_config or HashVolumeConfig(grid=GRID)
    kind = HashSDFField if isinstance(field_config, HashSDFConfig) else HashVolumeField
    field = kind(field_config, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        field.grid.table.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed + 1))
    return renderer_for(field, config, **parts)


def chord_and_entry(cameras: Cameras, ball: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Length inside the ball, and distance to it (nan for a miss), per pixel."""
    rays_o, rays_d = cameras.rays()
    closest = -(rays_o * rays_d).sum(-1)
    gap = (rays_o + closest[..., None] * rays_d).norm(dim=-1)
    half = (ball**2 - gap**2).clamp(min=0.0).sqrt()
    entry = torch.where(gap < ball, closest - half, torch.nan)
    return 2 * half, entry


def test_sphere_has_its_analytic_opacity():
    fine = replace(DENSE, samples_per_ray=1024)
    output = renderer_for(Sphere(4.0), fine).render(views())
    chord, _ = chord_and_entry(views(), 0.5)
    expected = 1 - torch.exp(-4.0 * chord)
    # One step of 2 sqrt(3) / 1024 of density 4 at either end of the chord.
    assert (output.opacity[..., 0] - expected).abs().max() < 0.02
    assert (output.opacity[..., 0] - expected).abs().mean() < 2e-3


def test_sphere_has_its_analytic_silhouette_and_depth():
    fine = replace(DENSE, samples_per_ray=1024)
    output = renderer_for(Sphere(200.0), fine).render(views())
    chord, entry = chord_and_entry(views(), 0.5)
    solid = chord > 0.05
    assert (output.opacity[..., 0][solid] > 0.99).all()
    assert (output.opacity[..., 0][chord == 0] == 0).all()
    # The mean free path behind the surface is 1/200.
    depth = (output.depth / output.opacity)[..., 0]
    assert (depth[solid] - entry[solid] - 1 / 200).abs().max() < 0.004


def test_sphere_has_its_analytic_depth_variance():
    fine = replace(DENSE, samples_per_ray=1024)
    sigma = 20.0
    output = renderer_for(Sphere(sigma), fine).render(views())
    chord, _ = chord_and_entry(views(), 0.5)
    # An exponential distribution with rate sigma, cut off at the chord L.
    x = sigma * chord
    expected = (1 - x**2 * torch.exp(-x) / (1 - torch.exp(-x)) ** 2) / sigma**2
    solid = chord > 0.1
    assert (output.z_variance[..., 0] - expected)[solid].abs().max() < 0.05 / sigma**2


def test_sphere_normals_and_light_are_those_of_the_sphere():
    output = renderer_for(Sphere(400.0), replace(DENSE, samples_per_ray=512)).render(
        views(), shading=LIT
    )
    cameras = views()
    rays_o, rays_d = cameras.rays()
    chord, entry = chord_and_entry(cameras, 0.5)
    hit = chord > 0.3
    expected = nn.functional.normalize(rays_o + entry[..., None] * rays_d, dim=-1)
    assert ((output.normal * expected).sum(-1)[hit] > 0.999).all()
    assert (output.normal[chord == 0] == 0).all()
    center = output.comp_rgb[:, SIZE // 2, SIZE // 2 + 2]
    # The light stands at the camera, so the middle of the ball is lit head-on.
    assert torch.allclose(center.amax(dim=-1), torch.full((2,), 0.75), atol=0.02)


class SphereAmongOthers(Sphere):
    """The ball, and solid matter wherever |x| > 0.6."""

    def density(self, x: torch.Tensor) -> torch.Tensor:
        return super().density(x) + 50.0 * (x.abs().amax(dim=-1) > 0.6)


@pytest.mark.parametrize("with_gradients", [True, False])
def test_cameras_limited_to_a_box_see_neither_what_hides_it_nor_what_is_behind(with_gradients):
    box = torch.tensor([[-0.55, -0.55, -0.55], [0.55, 0.55, 0.55]])
    part = views().around(torch.zeros(3), 1.0, box)
    alone, among = renderer_for(Sphere(4.0)), renderer_for(SphereAmongOthers(4.0))
    with torch.set_grad_enabled(with_gradients):
        expected, output, hidden = alone.render(views()), among.render(part), among.render(views())
    assert torch.equal(output.comp_rgb, expected.comp_rgb)
    assert torch.equal(output.opacity, expected.opacity)
    assert (hidden.opacity > 0.99).float().mean() > 0.5, "whole, it is hidden"


def test_half_transparent_sphere_shows_the_background():
    sphere = renderer_for(Sphere(2.0), background=SolidBackgroundConfig(color=(0.1, 0.2, 0.3)))
    output = sphere.render(views())
    color = output.comp_rgb - (1 - output.opacity) * output.comp_rgb_bg
    assert torch.equal(output.comp_rgb_bg[0, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(output.comp_rgb[0, 0, 0], torch.tensor([0.1, 0.2, 0.3]))
    assert (color.amin(dim=(1, 2)) >= -1e-6).all()
    assert (color <= 0.75 * output.opacity + 1e-6).all()


def test_pruned_sphere_equals_dense_sphere():
    dense, pruned = renderer_for(Sphere(6.0)), renderer_for(Sphere(6.0))
    # Occupied: exactly the cells that the ball touches.
    edges = torch.arange(33) / 16.0 - 1.0
    nearest = torch.minimum(edges[:-1].abs(), edges[1:].abs()).square()
    distance = nearest[:, None, None] + nearest[None, :, None] + nearest[None, None, :]
    pruned.occupancy.binary.copy_(distance < 0.5**2)
    assert pruned.occupancy.occupied_fraction < 0.12
    ours, theirs = pruned.render(views()), dense.render(views())
    assert len(ours.weights) < 0.3 * len(theirs.weights)
    assert torch.allclose(ours.comp_rgb, theirs.comp_rgb, atol=1e-6)
    assert torch.allclose(ours.depth, theirs.depth, atol=1e-5)


@pytest.mark.parametrize(("threshold", "bound"), [(1e-2, 6e-3), (1e-4, 1e-4)])
def test_error_of_pruning_by_updates_falls_with_its_threshold(threshold, bound, generator):
    config = replace(DENSE, occupancy=OccupancyConfig(resolution=32, threshold=threshold))
    dense, pruned = hash_renderer(config), hash_renderer(config)
    for _ in range(10):
        pruned.update_occupancy(0, generator)
    assert pruned.occupancy.occupied_fraction < 0.75
    with torch.no_grad():
        ours, theirs = pruned.render(views()), dense.render(views())
    assert (ours.comp_rgb - theirs.comp_rgb).abs().mean() < bound


def test_early_stop_drops_hidden_samples_and_keeps_the_image():
    stopping = replace(DENSE, min_transmittance=1e-3)
    full = renderer_for(Sphere(60.0)).render(views())
    stopped = renderer_for(Sphere(60.0), stopping).render(views())
    inside = (full.weights > 0).sum()
    assert (stopped.weights > 0).sum() < 0.6 * inside
    assert torch.allclose(stopped.comp_rgb, full.comp_rgb, atol=2e-3)
    assert torch.allclose(stopped.opacity, full.opacity, atol=2e-3)


class BrokenSphere(Sphere):
    """A ball with a grain whose density is given, between its centre and the first camera."""

    def __init__(self, grain: float) -> None:
        super().__init__(6.0)
        self.grain = grain

    def density(self, x: torch.Tensor) -> torch.Tensor:
        at_grain = (x - torch.tensor([0.3, 0.1, 0.2])).norm(dim=-1) < 0.05
        return torch.where(at_grain, self.grain, super().density(x))


def grain_pixels(cameras: Cameras) -> torch.Tensor:
    """Pixels whose rays pass through the grain."""
    rays_o, rays_d = cameras.rays()
    to_grain = torch.tensor([0.3, 0.1, 0.2]) - rays_o
    gap = (to_grain - (to_grain * rays_d).sum(-1, keepdim=True) * rays_d).norm(dim=-1)
    return gap < 0.05


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("grain", [math.nan, math.inf])
def test_density_that_is_no_number_changes_only_the_pixels_that_see_it(
    grain, with_gradients, backend
):
    config = VolumeRendererConfig(backend=backend)
    with torch.set_grad_enabled(with_gradients):
        healthy = renderer_for(BrokenSphere(6.0), config).render(views())
        broken = renderer_for(BrokenSphere(grain), config).render(views())
    seen = grain_pixels(views())
    assert 0 < seen.sum() < 0.05 * seen.numel()
    assert torch.equal(broken.comp_rgb[~seen], healthy.comp_rgb[~seen])
    assert torch.equal(broken.depth[~seen], healthy.depth[~seen])
    if math.isnan(grain):  # so that the loss is NaN, which training stops at
        assert not broken.comp_rgb[seen].isfinite().all()
        assert not broken.opacity[seen].isfinite().all()
    else:  # nothing is seen through it
        assert broken.opacity.max().item() == pytest.approx(1.0)


def test_density_that_is_no_number_is_noticed_even_behind_an_opaque_surface():
    class Core(Sphere):
        def density(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x.norm(dim=-1) < 0.2, math.nan, super().density(x))

    output = renderer_for(Core(400.0), VolumeRendererConfig()).render(views(1))
    assert output.opacity.isnan().any()
    assert output.opacity.isfinite().any()


def test_first_occupancy_update_prunes_the_density_blob(generator):
    renderer = renderer_for(HashVolumeField(HashVolumeConfig(grid=GRID), generator))
    assert renderer.occupancy.occupied_fraction == 1.0
    renderer.update_occupancy(1, generator)
    assert renderer.occupancy.occupied_fraction == 1.0
    renderer.update_occupancy(0, generator)
    assert 0.05 < renderer.occupancy.occupied_fraction < 0.2


def test_sample_cap_lengthens_the_step_and_keeps_the_picture():
    capped = replace(DENSE, max_samples=10000)
    whole = renderer_for(Sphere(6.0)).render(views())
    few = renderer_for(Sphere(6.0), capped).render(views())
    assert len(whole.weights) > 30000
    assert 0 < len(few.weights) <= 10000
    assert (few.opacity - whole.opacity).abs().mean() < 0.02


@pytest.mark.parametrize("shading", [None, LIT])
def test_evaluation_in_chunks_equals_one_pass(shading):
    small, large = replace(DENSE, eval_chunk_rays=37), replace(DENSE, eval_chunk_rays=10**6)
    with torch.no_grad():
        ours = hash_renderer(small).render(views(), shading=shading, with_normals=True)
        theirs = hash_renderer(large).render(views(), shading=shading, with_normals=True)
    assert torch.allclose(ours.comp_rgb, theirs.comp_rgb, atol=1e-5)
    assert torch.allclose(ours.normal, theirs.normal, atol=1e-4)
    assert ours.weights is None


def test_evaluation_equals_the_differentiable_pass_at_equal_steps():
    renderer = hash_renderer()
    with torch.no_grad():
        plain = renderer.render(views())
    assert torch.allclose(plain.comp_rgb, renderer.render(views()).comp_rgb, atol=1e-5)


def test_batch_equals_its_views_one_by_one():
    renderer = hash_renderer()
    batch = renderer.render(views(3), shading=LIT)
    for i in range(3):
        alone = renderer.render(views(3)[i], shading=LIT)
        assert torch.allclose(batch.comp_rgb[i], alone.comp_rgb[0], atol=1e-5)


def test_empty_scene_is_the_background_with_zero_gradients(generator):
    renderer = renderer_for(Sphere(6.0), background=RandomBackgroundConfig())
    renderer.occupancy.binary.zero_()
    output = renderer.render(views(), generator=generator, with_normals=True)
    assert torch.equal(output.comp_rgb, output.comp_rgb_bg)
    assert len(output.weights) == 0
    names = [name for name in REGULARIZERS if name != "eikonal"]
    sum(compute_regularizers(output, names).values()).backward()
    assert renderer.field.sigma.grad is None or renderer.field.sigma.grad == 0


def test_camera_inside_the_box_sees_nothing_nearer_than_the_near_plane():
    near = replace(DENSE, near=0.3)
    output = renderer_for(Sphere(6.0, ball=0.9), near).render(views(1, distance=0.5))
    assert (output.depth / output.opacity).min() >= 0.3


def test_normals_are_rendered_only_when_asked_for():
    renderer = hash_renderer()
    assert renderer.render(views()).normal is None
    assert renderer.render(views()).sample_normals is None
    assert renderer.render(views(), with_normals=True).normal is not None
    assert renderer.render(views(), shading=LIT).normal is not None


def test_albedo_image_does_not_depend_on_normals():
    renderer = hash_renderer()
    plain, full = renderer.render(views()), renderer.render(views(), with_normals=True)
    assert torch.allclose(plain.comp_rgb, full.comp_rgb, atol=1e-6)


def test_evaluation_uses_the_materials_shading():
    lit = hash_renderer(material=DiffuseMaterialConfig(eval_shading="diffuse"))
    plain = hash_renderer()
    assert torch.allclose(lit.render(views()).comp_rgb, plain.render(views(), shading=LIT).comp_rgb)


def test_gradient_of_the_image_matches_finite_differences():
    def image_sum(sigma: float) -> tuple[torch.Tensor, nn.Parameter]:
        renderer = renderer_for(Sphere(sigma)).double()
        output = renderer.render(views().to(torch.float64))
        return (output.comp_rgb.sum() + output.depth.sum()), renderer.field.sigma

    total, sigma = image_sum(3.0)
    total.backward()
    with torch.no_grad():
        slope = (image_sum(3.001)[0] - image_sum(2.999)[0]) / 0.002
    # Parameters start as float32, hence the tolerance.
    assert float(sigma.grad) == pytest.approx(float(slope), rel=2e-3)


@pytest.mark.parametrize("config", [HashVolumeConfig(grid=GRID), HashSDFConfig(grid=GRID)])
def test_gradients_reach_field_and_background(config, generator):
    renderer = hash_renderer(
        field_config=config, background=NeuralBackgroundConfig(random_probability=0.0)
    )
    renderer.update_occupancy(0, generator)
    output = renderer.render(views(), generator=generator, shading=LIT)
    names = [n for n in REGULARIZERS if n != "eikonal" or isinstance(config, HashSDFConfig)]
    losses = compute_regularizers(output, names)
    (output.comp_rgb.square().mean() + sum(losses.values())).backward()
    for name, parameter in renderer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_signed_distance_renders_the_same_ball_as_density():
    config = HashSDFConfig(grid=GRID, initial_beta=0.01)
    field = HashSDFField(config, torch.Generator().manual_seed(0))
    fine = replace(DENSE, samples_per_ray=256)
    output = renderer_for(field, fine).render(views(1), with_normals=True)
    chord, entry = chord_and_entry(views(1), 0.5)
    solid = chord > 0.3
    assert (output.opacity[..., 0][solid] > 0.99).all()
    assert ((output.depth / output.opacity)[..., 0][solid] - entry[solid]).abs().max() < 0.03


def test_float64_render_agrees_with_float32():
    single, double = hash_renderer(), hash_renderer().double()
    ours = single.render(views(), shading=LIT)
    theirs = double.render(views().to(torch.float64), shading=LIT)
    assert theirs.comp_rgb.dtype == torch.float64
    assert (ours.comp_rgb.double() - theirs.comp_rgb).abs().mean() < 1e-4


def test_occupancy_updates_in_float64(generator):
    renderer = hash_renderer().double()
    renderer.update_occupancy(0, generator)
    assert renderer.occupancy.occupied_fraction < 0.5


def test_uniform_fog_has_the_analytic_opacity():
    config = HashVolumeConfig(grid=GRID, blob=NoBlobConfig(bias=0.0))
    field = HashVolumeField(config, torch.Generator().manual_seed(0))
    output = renderer_for(field, replace(DENSE, samples_per_ray=256)).render(views(1))
    center = output.opacity[0, SIZE // 2, SIZE // 2 + 2, 0]
    # Straight through the middle at 20 degrees of elevation the box is 2 / cos(20) deep.
    expected = 1 - math.exp(-math.log(2) * 2 / math.cos(math.radians(20)))
    assert center.item() == pytest.approx(expected, abs=0.02)


def train(renderer: VolumeRenderer, generator: torch.Generator, steps: range, state=None) -> dict:
    """A few optimisation steps; returns everything a checkpoint needs."""
    adam = torch.optim.Adam(renderer.parameters(), lr=1e-2)
    if state:
        renderer.load_state_dict(state["renderer"])
        adam.load_state_dict(state["adam"])
        generator.set_state(state["generator"])
    config = RandomCamerasConfig(batch_size=2, height=12, width=12, distance_range=(2.0, 2.5))
    for step in steps:
        renderer.set_fraction(step / 6)
        renderer.update_occupancy(step, generator)
        cameras = sample_cameras(config, generator, fraction=step / 6)
        output = renderer.render(cameras, generator=generator, shading=LIT)
        adam.zero_grad()
        (output.comp_rgb.square().mean() + 0.1 * output.opacity.mean()).backward()
        adam.step()
    return {
        "renderer": {k: v.clone() for k, v in renderer.state_dict().items()},
        "adam": adam.state_dict(),
        "generator": generator.get_state(),
    }


def test_resumed_training_is_bit_exact():
    config = replace(DENSE, occupancy=OccupancyConfig(resolution=16, update_every=2))
    parts = {"background": NeuralBackgroundConfig()}
    whole = train(hash_renderer(config, **parts), torch.Generator().manual_seed(3), range(6))
    half = train(hash_renderer(config, **parts), torch.Generator().manual_seed(3), range(3))
    resumed = train(
        hash_renderer(config, seed=77, **parts), torch.Generator(), range(3, 6), state=half
    )
    assert set(resumed["renderer"]) == set(whole["renderer"])
    for name, value in whole["renderer"].items():
        assert torch.equal(resumed["renderer"][name], value), name
    assert any("occupancy" in name for name in whole["renderer"])


def test_same_seed_gives_the_same_render():
    renderer = hash_renderer(background=RandomBackgroundConfig())
    first, second, other = (
        renderer.render(views(), generator=torch.Generator().manual_seed(seed)).comp_rgb
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VolumeRendererConfig(samples_per_ray=0), "renderer.samples_per_ray is 0"),
        (lambda: VolumeRendererConfig(min_alpha=0.9), "from 0 to 0.5"),
        (lambda: OccupancyConfig(resolution=-64), "occupancy.resolution is -64"),
        (lambda: HashVolumeConfig(radius=-1.0), "field.radius is -1.0"),
        (lambda: HashSDFConfig(semi_axes=(0.5, 0.0, 0.5)), "three positive lengths"),
        (lambda: RandomBackgroundConfig(probability=1.5), "background.probability is 1.5"),
        (lambda: DiffuseMaterialConfig(ambient=-0.1), "material.ambient is -0.1"),
    ],
)
def test_bad_configs_say_what_to_change(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
