"""Confidence intervals against published values and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from studio.evaluation.intervals import Estimate, bootstrap_mean, wilson


def test_wilson_gives_the_published_interval():
    # Newcombe, Statistics in Medicine 1998, Table I, method 3: 81/263 and 15/148.
    first, second = wilson(81, 263), wilson(15, 148)
    assert (first.low, first.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert (second.low, second.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)


@pytest.mark.parametrize("n", [1, 20])
def test_wilson_keeps_to_zero_and_one(n):
    none, all_of_them = wilson(0, n), wilson(n, n)
    z2 = 1.959964**2
    assert (none.low, all_of_them.high) == (0.0, 1.0)
    assert none.high == pytest.approx(z2 / (n + z2), abs=1e-6)
    assert all_of_them.low == pytest.approx(n / (n + z2), abs=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="expected 0 to n"):
        wilson(successes, n)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_mean([0.5] * 7) == Estimate(0.5, 0.5, 0.5, 7)


def test_bootstrap_approaches_the_normal_interval():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.02
    )


def test_bootstrap_is_repeatable_and_refuses_nothing():
    assert bootstrap_mean([0, 1, 1], seed=3) == bootstrap_mean([0, 1, 1], seed=3)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])


def test_an_estimate_prints_its_interval():
    assert wilson(9, 10).text() == "0.90 [0.60, 0.98]"
    assert wilson(9, 10).text(3) == "0.900 [0.596, 0.982]"
