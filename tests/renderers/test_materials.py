"""Shading draws have the published frequencies, and shading is Lambert's law."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from renderers.configs import AlbedoMaterialConfig, DiffuseMaterialConfig
from renderers.materials import ALBEDO, Shading, draw_shading, eval_shading, shade

ALBEDO_COLOR = torch.tensor([[0.8, 0.5, 0.2]])
UP = torch.tensor([[0.0, 0.0, 1.0]])
ORIGIN = torch.zeros(1, 3)


def lit(light: list[float], shading: Shading) -> torch.Tensor:
    return shade(ALBEDO_COLOR, UP, ORIGIN, torch.tensor([light]), shading)


def test_shading_frequencies_are_a_quarter_and_two_times_three_eighths(generator):
    config = DiffuseMaterialConfig()
    n = 8000
    counts = Counter(draw_shading(config, 0.5, generator).kind for _ in range(n))
    # Three standard deviations of a share of 3/8 over 8000 draws are 0.016.
    assert counts["albedo"] / n == pytest.approx(0.25, abs=0.016)
    assert counts["textureless"] / n == pytest.approx(0.375, abs=0.016)
    assert counts["diffuse"] / n == pytest.approx(0.375, abs=0.016)


def test_only_albedo_before_the_ambient_phase_ends(generator):
    config = DiffuseMaterialConfig(ambient_only_until=0.2)
    early = {draw_shading(config, 0.19, generator).kind for _ in range(200)}
    late = {draw_shading(config, 0.2, generator).kind for _ in range(200)}
    assert early == {"albedo"}
    assert late == {"albedo", "textureless", "diffuse"}


def test_albedo_material_is_never_lit(generator):
    assert all(draw_shading(AlbedoMaterialConfig(), 1.0, generator) == ALBEDO for _ in range(50))


def test_soft_light_mixes_uniformly_and_sums_to_one(generator):
    config = DiffuseMaterialConfig(light_mix="soft", ambient_only_until=0.0)
    draws = [draw_shading(config, 0.5, generator) for _ in range(4000)]
    soft = torch.tensor([d.diffuse for d in draws if d.kind != "albedo"])
    assert all(d.ambient + d.diffuse == pytest.approx(1.0) for d in draws)
    assert float(soft.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(soft.std()) == pytest.approx(12**-0.5, abs=0.02)


def test_draws_consume_the_same_randomness_whatever_they_give():
    streams = []
    for fraction in (0.0, 1.0):
        seeded = torch.Generator().manual_seed(1)
        draw_shading(DiffuseMaterialConfig(), fraction, seeded)
        streams.append(torch.rand(1, generator=seeded))
    assert torch.equal(*streams)


def test_only_lit_shading_needs_normals():
    assert not ALBEDO.needs_normals
    assert Shading("textureless", 0.1, 0.9).needs_normals
    assert Shading("diffuse", 0.1, 0.9).needs_normals


def test_evaluation_shading_is_fixed():
    assert eval_shading(AlbedoMaterialConfig()) == ALBEDO
    assert eval_shading(DiffuseMaterialConfig()) == ALBEDO
    lit_config = DiffuseMaterialConfig(eval_shading="diffuse")
    assert eval_shading(lit_config) == Shading("diffuse", 0.1, 0.9)


@pytest.mark.parametrize(
    ("light", "facing"),
    [([0.0, 0.0, 3.0], 1.0), ([3.0, 0.0, 3.0], 0.5**0.5), ([1.0, 0, 0], 0.0), ([0, 0, -2.0], 0.0)],
)
def test_diffuse_colour_follows_the_cosine(light, facing):
    expected = ALBEDO_COLOR * (0.1 + 0.9 * facing)
    assert torch.allclose(lit(light, Shading("diffuse", 0.1, 0.9)), expected)


def test_textureless_colour_ignores_the_albedo():
    assert torch.allclose(lit([0.0, 0.0, 3.0], Shading("textureless", 0.1, 0.9)), torch.ones(1, 3))
    assert torch.allclose(
        lit([0.0, 0.0, -3.0], Shading("textureless", 0.1, 0.9)), torch.full((1, 3), 0.1)
    )


def test_albedo_shading_does_not_touch_normals():
    color = shade(ALBEDO_COLOR, None, ORIGIN, ORIGIN, ALBEDO)
    assert torch.equal(color, ALBEDO_COLOR)
    with pytest.raises(ValueError, match="expected normals for 'diffuse' shading"):
        shade(ALBEDO_COLOR, None, ORIGIN, ORIGIN, Shading("diffuse", 0.1, 0.9))


def test_one_light_per_view_broadcasts_over_its_pixels():
    albedo = torch.rand(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))
    normal = UP.expand(2, 3, 4, 3)
    light = torch.tensor([[0.0, 0, 5], [0, 0, -5]])[:, None, None]
    image = shade(albedo, normal, torch.zeros(2, 3, 4, 3), light, Shading("diffuse", 0.1, 0.9))
    assert torch.allclose(image[0], albedo[0])
    assert torch.allclose(image[1], 0.1 * albedo[1])


def test_light_moves_the_normal():
    normal = torch.tensor([[0.6, 0.0, 0.8]], requires_grad=True)
    shading = Shading("diffuse", 0.1, 0.9)
    shade(ALBEDO_COLOR, normal, ORIGIN, torch.tensor([[3.0, 0.0, 0.0]]), shading).sum().backward()
    assert normal.grad[0, 0] > 0
