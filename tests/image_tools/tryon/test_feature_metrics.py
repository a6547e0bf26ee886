"""Distances of sets and likeness of pictures, where their values are known."""

from __future__ import annotations

import pytest
import torch

from image_tools.tryon.feature_metrics import (
    frechet_distance,
    joint_likeness,
    kernel_distance,
    likeness,
)
from renderers.errors import ShapeError


def drawn(seed: int, rows: int = 400, width: int = 4) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def exact(features: torch.Tensor, mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Features with exactly this mean and the covariance ``root root^T``."""
    centred = features - features.mean(dim=0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(centred.mT.cov())).mT
    return white @ root.mT + mean


def test_equal_sets_are_at_no_distance_and_shifts_count_squared() -> None:
    features = drawn(0)
    assert float(frechet_distance(features, features)) == pytest.approx(0.0, abs=1e-9)
    moved = features + torch.tensor([3.0, 0.0, -4.0, 0.0])
    assert float(frechet_distance(moved, features)) == pytest.approx(25.0, rel=1e-5)


def test_frechet_is_its_formula_for_gaussians_that_commute() -> None:
    """Then it is the squared difference of means and of standard deviations."""
    turned = torch.linalg.qr(drawn(9, 4).double()).Q
    spreads = torch.tensor([[1.0, 2.0, 0.5, 3.0], [2.0, 2.0, 1.0, 0.25]]).double()
    sets = [
        exact(drawn(k).double(), mean, turned @ spread.diag())
        for k, (mean, spread) in enumerate(zip((0.0, 0.5), spreads, strict=True))
    ]
    wanted = 4 * 0.5**2 + float((spreads[0] - spreads[1]).square().sum())
    assert float(frechet_distance(*sets)) == pytest.approx(wanted, rel=1e-8)
    assert float(frechet_distance(*sets[::-1])) == pytest.approx(wanted, rel=1e-8)


def test_the_kernel_distance_is_its_double_sum() -> None:
    x, y = drawn(1, 5, 3).double(), (drawn(2, 5, 3) + 1.0).double()

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return (float(a @ b) / 3 + 1.0) ** 3

    pairs = [(i, j) for i in range(5) for j in range(5)]
    apart = [(i, j) for i, j in pairs if i != j]
    wanted = sum(k(x[i], x[j]) + k(y[i], y[j]) for i, j in apart) / 20
    wanted -= 2 * sum(k(x[i], y[j]) for i, j in pairs) / 25
    found = kernel_distance(x, y, generator=torch.Generator().manual_seed(0), subsets=3)
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_the_kernel_distance_has_no_bias() -> None:
    """Sets of one distribution are at 0 on average, small as they are."""

    def distance(shift: float, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        x, y = drawn(seed, 12), drawn(1000 + seed, 12) + shift
        return float(kernel_distance(x, y, generator=generator, subsets=2, size=8))

    same = torch.tensor([distance(0.0, seed) for seed in range(80)])
    assert abs(float(same.mean())) < 3 * float(same.std()) / 80**0.5
    assert min(distance(2.0, seed) for seed in range(20)) > float(same.max())


def test_one_wrong_garment_spoils_the_joint_likeness() -> None:
    shirt, trousers = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    slanted = torch.tensor([[1.0, 1.0]])
    assert float(likeness(shirt, 5.0 * shirt)) == pytest.approx(1.0)
    assert float(joint_likeness([shirt, trousers], [shirt, trousers])) == pytest.approx(1.0)
    assert float(joint_likeness([shirt, trousers], [slanted, slanted])) == pytest.approx(0.5)
    assert float(joint_likeness([shirt, trousers], [shirt, shirt])) == pytest.approx(0.0)
    with pytest.raises(ShapeError, match="1 garments that are worn came with 2 products"):
        joint_likeness([shirt], [shirt, trousers])


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ShapeError, match="references has shape"):
        frechet_distance(drawn(0), drawn(0, width=3))
    with pytest.raises(ShapeError, match="1 pictures are compared with 400"):
        kernel_distance(drawn(0, 1), drawn(0), generator=torch.Generator())
