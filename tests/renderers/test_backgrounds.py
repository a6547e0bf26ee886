"""Backgrounds: colours, sharing between views, the environment map."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from renderers.backgrounds import build_background, spherical_harmonics
from renderers.cameras import orbit_cameras
from renderers.configs import (
    NeuralBackgroundConfig,
    RandomBackgroundConfig,
    SolidBackgroundConfig,
)


def rays(n_views: int = 4) -> torch.Tensor:
    cameras = orbit_cameras(
        n_views, elevation_deg=10.0, distance=2.0, fovy_deg=50.0, height=6, width=8
    )
    return cameras.rays()[1]


def colors_per_image(images: torch.Tensor) -> list[int]:
    return [len(image.reshape(-1, 3).unique(dim=0)) for image in images]


def test_solid_background_is_its_colour(generator):
    background = build_background(SolidBackgroundConfig(color=(0.2, 0.4, 0.6)), generator)
    expected = torch.tensor([0.2, 0.4, 0.6]).expand(4, 6, 8, 3)
    assert torch.equal(background(rays(), generator), expected)
    assert torch.equal(background(rays(), None), expected)


def test_random_background_has_one_colour_per_image(generator):
    images = build_background(RandomBackgroundConfig(), generator)(rays(), generator)
    assert colors_per_image(images) == [1, 1, 1, 1]
    assert len(images[:, 0, 0].unique(dim=0)) == 4


def test_shared_random_background_is_one_colour_for_the_batch(generator):
    background = build_background(RandomBackgroundConfig(share="batch"), generator)
    first, second = background(rays(), generator), background(rays(), generator)
    assert len(first.reshape(-1, 3).unique(dim=0)) == 1
    assert not torch.equal(first, second)


def test_random_background_is_solid_in_evaluation(generator):
    background = build_background(RandomBackgroundConfig(color=(0.0, 0.5, 1.0)), generator)
    assert torch.equal(background(rays(), None), torch.tensor([0.0, 0.5, 1.0]).expand(4, 6, 8, 3))


@pytest.mark.parametrize("share", ["image", "batch"])
def test_random_background_keeps_its_probability(share, generator):
    config = RandomBackgroundConfig(probability=0.3, share=share, color=(1.0, 1.0, 1.0))
    background = build_background(config, generator)
    directions = torch.zeros(4, 1, 1, 3)
    solid = [(background(directions, generator) == 1.0).all(-1) for _ in range(2000)]
    assert float(torch.stack(solid).float().mean()) == pytest.approx(0.7, abs=0.03)
    if share == "batch":
        assert all(bool(s.all()) or not bool(s.any()) for s in solid)


def test_environment_map_depends_on_direction_alone(generator):
    background = build_background(NeuralBackgroundConfig(), generator)
    direction = torch.nn.functional.normalize(torch.randn(1, 6, 8, 3, generator=generator), dim=-1)
    once = background(direction, None)
    assert ((once > 0) & (once < 1)).all()
    assert colors_per_image(once) == [48]
    assert torch.allclose(background(direction.flip(2), None), once.flip(2), atol=1e-6)


def test_environment_map_is_replaced_with_its_probability(generator):
    config = NeuralBackgroundConfig(random_probability=0.5)
    background = build_background(config, generator)
    flat = [n == 1 for _ in range(300) for n in colors_per_image(background(rays(), generator))]
    assert sum(flat) / len(flat) == pytest.approx(0.5, abs=0.06)
    always = build_background(replace(config, random_probability=1.0, share="batch"), generator)
    assert len(always(rays(), generator).reshape(-1, 3).unique(dim=0)) == 1


def test_environment_map_trains_where_it_shows(generator):
    background = build_background(NeuralBackgroundConfig(random_probability=0.0), generator)
    background(rays(), generator).square().sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in background.parameters())


def test_spherical_harmonics_are_orthonormal():
    # Gauss-Legendre in z and equal steps in azimuth integrate degree <= 4 exactly.
    z = torch.tensor([-0.9061798459, -0.5384693101, 0.0, 0.5384693101, 0.9061798459]).double()
    w = torch.tensor([0.2369268851, 0.4786286705, 0.5688888889, 0.4786286705, 0.2369268851])
    angle = torch.arange(8).double() * (2 * math.pi / 8)
    flat = (1 - z * z).sqrt()
    directions = torch.stack(
        [
            (flat[:, None] * angle.cos()).reshape(-1),
            (flat[:, None] * angle.sin()).reshape(-1),
            z[:, None].expand(5, 8).reshape(-1),
        ],
        dim=-1,
    )
    weights = (w.double()[:, None] * (2 * math.pi / 8)).expand(5, 8).reshape(-1)
    values = spherical_harmonics(directions)
    gram = (values * weights[:, None]).T @ values
    assert torch.allclose(gram, torch.eye(9).double(), atol=1e-6)


def test_same_seed_gives_the_same_background():
    config = NeuralBackgroundConfig()
    images = []
    for _ in range(2):
        seeded = torch.Generator().manual_seed(11)
        images.append(build_background(config, seeded)(rays(), seeded))
    assert torch.equal(*images)
