"""Running sums along rays against loops, with numbers and without."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from renderers.backends import ray_sums
from renderers.backends.ray_sums import sum_before, widest_float

COUNTS = (3, 0, 1, 40, 7, 0)
"""Samples of each ray, rays without any included."""


def packed() -> tuple[Tensor, Tensor]:
    counts = torch.tensor(COUNTS)
    first = torch.cumsum(counts, 0) - counts
    return torch.arange(len(counts)).repeat_interleave(counts), torch.stack([first, counts], 1)


def by_loops(values: Tensor) -> Tensor:
    sums = []
    for part in values.double().split(COUNTS):
        sums += [part[:k].sum() for k in range(len(part))]
    return torch.stack(sums)


@pytest.fixture
def values(generator) -> Tensor:
    return torch.rand(sum(COUNTS), generator=generator)


@pytest.fixture
def without_float64(monkeypatch) -> None:
    """As on MPS."""
    monkeypatch.setattr(ray_sums, "widest_float", lambda _: torch.float32)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)],
)
def test_the_widest_float_is_one_that_the_device_has(device, dtype):
    assert widest_float(torch.device(device)) is dtype


def test_sums_start_anew_on_each_ray(values):
    sums = sum_before(values, *packed())
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, by_loops(values))


@pytest.mark.usefixtures("without_float64")
def test_without_float64_the_sums_are_right_to_float32(values):
    """Through one sum over all rays, the digits of a thin ray would be lost behind a dense one."""
    values[:3] = 1e8
    sums = sum_before(values, *packed())
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums.double(), by_loops(values), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 2, 5, 43, 50])
def test_what_is_no_number_is_felt_behind_it_on_its_ray_only(values, value, at):
    healthy = by_loops(values)
    values[at] = value
    sums, (ray_indices, _) = sum_before(values, *packed()), packed()
    behind = (ray_indices == ray_indices[at]) & (torch.arange(len(values)) > at)
    expected = torch.where(behind, value, healthy)
    torch.testing.assert_close(sums, expected, equal_nan=True)


def test_gradients_do_not_leave_the_ray_of_a_value_that_is_no_number(values):
    def gradient(changed: Tensor) -> Tensor:
        changed = changed.clone().requires_grad_()
        return torch.autograd.grad(sum_before(changed, *packed()).square().sum(), changed)[0]

    expected = gradient(values)
    values[5] = math.nan
    others = packed()[0] != packed()[0][5]
    torch.testing.assert_close(gradient(values)[others], expected[others])


@pytest.mark.parametrize("bad", [False, True])
def test_sums_can_be_differentiated_twice(values, bad):
    """Both ways of summing: by one sum over all rays, and ray by ray."""
    ray_indices, info = packed()
    tail = torch.tensor([math.inf], dtype=torch.float64) if bad else torch.zeros(0)

    def function(x: Tensor) -> Tensor:  # the infinity, on the last ray with samples, is constant
        return sum_before(torch.cat([x, tail.to(x)]), ray_indices, info).square()

    x = values.double()[: len(values) - len(tail)].requires_grad_()
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_no_samples_have_no_sums():
    none = torch.zeros(0, dtype=torch.long)
    assert sum_before(torch.zeros(0), none, torch.zeros(4, 2, dtype=torch.long)).shape == (0,)
