"""Properties of maps in closed form: discs and Gaussians, shifts, areas, constant features."""

from __future__ import annotations

import math

import pytest
import torch

from image_tools.control.image_properties import (
    appearance,
    centroid,
    normalized,
    shape,
    size,
    thing_mask,
    transformed,
)

H, W = 48, 64


def places(height: int = H, width: int = W):
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return x, y


def gaussian(x0: float, y0: float, spread: float = 0.05) -> torch.Tensor:
    x, y = places()
    return torch.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * spread**2))


def disc(x0: float, y0: float, radius: float) -> torch.Tensor:
    x, y = places()
    return ((x - x0) ** 2 + (y - y0) ** 2 < radius**2).float()


@pytest.mark.parametrize(("x0", "y0"), [(0.5, 0.5), (0.3, 0.6), (0.7, 0.25)])
@pytest.mark.parametrize("brightness", [0.5, 40.0])
def test_centroids_of_gaussians(x0, y0, brightness):
    found = centroid(brightness * gaussian(x0, y0))
    torch.testing.assert_close(found, torch.tensor([x0, y0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("radius", [0.1, 0.2, 0.35])
def test_sizes_of_discs_are_their_areas(radius):
    given = disc(0.5, 0.5, radius)
    torch.testing.assert_close(size(given), given.mean(), atol=1e-3, rtol=0)
    pixels = (H - 1) * (W - 1)  # of unit length, between the outermost centres
    assert float(given.sum() / pixels) == pytest.approx(math.pi * radius**2, rel=0.03)


def test_shapes_are_the_discs_and_their_masks():
    given = disc(0.4, 0.5, 0.2)
    torch.testing.assert_close(shape(3.0 * given), given, atol=1e-3, rtol=0)
    assert torch.equal(thing_mask(0.02 * given + 0.3), given)


def test_moving_a_map_moves_its_properties():
    given = gaussian(0.4, 0.5)[None]
    moved = transformed(given, shift=(0.2, -0.1))
    torch.testing.assert_close(moved, gaussian(0.6, 0.4)[None], atol=0.05, rtol=0)
    torch.testing.assert_close(
        centroid(moved), centroid(given) + torch.tensor([0.2, -0.1]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_scaling_a_map_scales_its_area_around_its_centre(scale):
    given = disc(0.6, 0.4, 0.2)[None]
    scaled = transformed(given, scale=scale)
    assert float(scaled.mean() / given.mean()) == pytest.approx(scale**2, rel=0.05)
    torch.testing.assert_close(centroid(scaled), centroid(given), atol=5e-3, rtol=0)


def test_doing_nothing_to_a_map_gives_it_back():
    given = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(transformed(given), given, atol=1e-5, rtol=0)
    gone = transformed(given, shift=(2.0, 0.0))
    assert torch.equal(gone, torch.zeros_like(gone))


def test_appearance_is_the_constant_under_the_mask():
    left = disc(0.25, 0.5, 0.15)
    features = torch.stack([torch.where(places()[0] < 0.5, 3.0, -1.0), torch.ones(H, W)])
    found = appearance(torch.stack([left, disc(0.75, 0.5, 0.15)]), features)
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.0], [-1.0, 1.0]]), atol=1e-3, rtol=1e-3)


def test_appearance_has_no_gradient_in_the_maps():
    maps = disc(0.5, 0.5, 0.2)[None].requires_grad_()
    features = torch.ones(3, H // 2, W // 2, requires_grad=True)
    appearance(maps, features).sum().backward()
    assert maps.grad is None
    assert features.grad.abs().sum() > 0


def test_flat_maps_have_finite_properties_and_gradients():
    maps = torch.full((2, 6, 6), 0.1, requires_grad=True)
    found = [normalized(maps), shape(maps), size(maps), centroid(maps)]
    sum(part.sum() for part in found).backward()
    assert all(torch.isfinite(part).all() for part in found)
    assert torch.isfinite(maps.grad).all()
    assert torch.isfinite(appearance(maps, torch.ones(1, 6, 6))).all()


def test_gradients_are_those_of_finite_differences():
    maps = torch.rand(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps.requires_grad_()
    for function in (shape, size, centroid, lambda m: transformed(m, shift=(0.1, 0.2), scale=1.3)):
        assert torch.autograd.gradcheck(function, (maps,))
