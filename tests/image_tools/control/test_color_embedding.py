"""The image embedding of colours: what it tells, what it does not, and how smoothly."""

from __future__ import annotations

import pytest
import torch

from image_tools.control.color_embedding import COLOR_BINS, color_embedding
from renderers.errors import ShapeError


def solid(*color: float) -> torch.Tensor:
    """An image of one colour."""
    return torch.tensor(color).expand(1, 4, 4, 3)


def test_it_is_a_histogram_of_unit_mean_square():
    images = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    embedding = color_embedding(images)
    assert embedding.shape == (3, COLOR_BINS[0] * COLOR_BINS[1] * COLOR_BINS[2])
    torch.testing.assert_close(embedding.square().mean(1), torch.ones(3))


def test_a_colour_of_the_grid_fills_one_bin_and_the_middle_of_a_cell_eight():
    assert int((color_embedding(solid(0.0, 1.0, 0.0)) > 1e-2).sum()) == 1
    cell = [0.5 / (bins - 1) for bins in COLOR_BINS]
    filled = color_embedding(solid(*cell)).square()
    filled = filled[filled > 1e-2]
    assert filled.tolist() == pytest.approx([384 / 8] * 8, rel=1e-4)


def test_layout_does_not_count():
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 6, 6, 3, generator=generator)
    shuffled = images.flatten(1, 2)[:, torch.randperm(36, generator=generator)].unflatten(1, (6, 6))
    torch.testing.assert_close(color_embedding(shuffled), color_embedding(images))


def test_nearer_colours_are_nearer():
    red, nearly, blue = (
        color_embedding(solid(*c)) for c in ((0.9, 0.1, 0.1), (0.85, 0.1, 0.1), (0.1, 0.1, 0.9))
    )
    assert (red - nearly).norm() < 0.5 * (red - blue).norm()


def test_gradients_reach_the_image():
    images = torch.full((1, 2, 2, 3), 0.43, requires_grad=True)
    color_embedding(images)[0, :200].sum().backward()
    assert torch.isfinite(images.grad).all()
    assert images.grad.abs().max() > 0


@pytest.mark.wrong_shapes
def test_other_shapes_are_refused():
    with pytest.raises(ShapeError, match="images"):
        color_embedding(torch.zeros(1, 3, 4, 4))
