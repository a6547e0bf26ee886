"""Distances in a network's features: pictures keep their aspect, and all features count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from image_tools.tryon.perceptual import FeatureDistance, Vgg19


def pictures(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2.0 - 1.0


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 384), (341, 256)),
        ((384, 512), (256, 341)),
        ((64, 48), (341, 256)),
        ((256, 256), (256, 256)),
        ((256, 300), (256, 300)),
    ],
)
def test_the_shorter_side_is_brought_to_256_pixels(size, seen) -> None:
    """LaDI-VTON's loss resizes by torchvision's Resize(256), of one number."""
    found = []
    distance = FeatureDistance(lambda x: (found.append(tuple(x.shape[-2:])), [x] * 5)[1])
    distance(pictures(*size), pictures(*size, seed=1))
    assert found == [seen, seen]


def test_it_is_the_weighted_sum_of_mean_differences_of_pictures_in_0_to_1() -> None:
    first, second = pictures(8, 8), pictures(8, 8, seed=1)
    distance = FeatureDistance(lambda x: [x, 2.0 * x], weights=(0.25, 1.0), side=8)
    mean = (first - second).abs().mean() / 2.0
    torch.testing.assert_close(distance(first, second), (0.25 + 2.0) * mean)
    assert float(distance(first, first)) == 0.0


def test_vggs_features_are_those_after_each_blocks_first_convolution() -> None:
    net = Vgg19(width=8)
    shapes = [tuple(level.shape[1:]) for level in net(pictures(64, 48) / 2.0 + 0.5)]
    assert shapes == [(8, 64, 48), (16, 32, 24), (32, 16, 12), (64, 8, 6), (64, 4, 3)]
