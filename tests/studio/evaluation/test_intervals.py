"""Confidence intervals against published values, closed forms and simulated coverage."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isnan

import numpy as np
import pytest
from scipy.stats import binom

from studio.evaluation.intervals import (
    ANY,
    POSITIVE,
    SHARE,
    Estimate,
    difference_estimate,
    estimate_of,
    json_values,
    mean_estimate,
    wilson,
    without_interval,
)

RUNS = 400


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


# --- coverage -------------------------------------------------------------------------------------


def covered(found: Estimate, truth: float) -> bool:
    """Whether an interval has the truth; where there is none, nothing wrong is said."""
    return not found.has_interval or found.low <= truth <= found.high


@pytest.mark.parametrize(
    ("share", "n", "coverage"), [(0.97, 64, 0.957), (0.90, 12, 0.974), (0.97, 9, 0.972)]
)
def test_shares_of_outcomes_are_covered(share, n, coverage):
    """Exactly, by the binomial distribution; percentiles of a bootstrap: 0.85, 0.71 and 0.24."""
    counts = np.arange(n + 1)
    found = [mean_estimate([1] * k + [0] * (n - k), within=SHARE) for k in counts]
    hits = [covered(one, share) for one in found]
    assert binom.pmf(counts, n, share)[hits].sum() == pytest.approx(coverage, abs=5e-4)


def of_views(rng: np.random.Generator, n: int) -> np.ndarray:
    """Shares of eight views that are right, of assets most of which are right throughout."""
    return rng.binomial(8, rng.beta(9.0, 0.5, n)) / 8


def nearly_all(rng: np.random.Generator, n: int) -> np.ndarray:
    """One, but for a tenth of the values, which may be anything."""
    return np.where(rng.random(n) < 0.1, rng.random(n), 1.0)


@pytest.mark.parametrize(
    ("draw", "truth", "within", "coverage"),
    [
        (lambda rng, n: rng.normal(size=n), 0.0, ANY, (0.951, 0.949, 0.945)),
        (lambda rng, n: rng.beta(8.0, 2.0, n), 0.8, SHARE, (0.942, 0.950, 0.949)),
        (lambda rng, n: rng.beta(0.5, 6.0, n), 0.5 / 6.5, SHARE, (0.901, 0.927, 0.953)),
        (lambda rng, n: rng.exponential(size=n), 1.0, POSITIVE, (0.913, 0.935, 0.949)),
        (of_views, 9.0 / 9.5, SHARE, (0.999, 0.998, 0.950)),
        (nearly_all, 0.95, SHARE, (0.979, 0.968, 0.958)),
    ],
    ids=["normal", "overlaps", "many near 0", "skewed amounts", "views", "outliers"],
)
def test_means_of_few_values_are_covered(
    draw: Callable[[np.random.Generator, int], np.ndarray],
    truth: float,
    within: tuple[float, float],
    coverage: tuple[float, ...],
):
    """Of 6, 9 and 64 values; the coverage is of 4000 runs, of which some are repeated here.

    Percentiles of a bootstrap, in the order of the cases: 0.86 0.89 0.94; 0.85 0.88 0.93; 0.78 0.84
    0.94; 0.83 0.87 0.93; 0.81 0.79 0.93; 0.43 0.56 0.91.
    """
    rng = np.random.default_rng(0)
    for n, expected in zip((6, 9, 64), coverage, strict=True):
        found = [mean_estimate(draw(rng, n), within=within) for _ in range(RUNS)]
        hits = sum(covered(one, truth) for one in found) / RUNS
        assert hits == pytest.approx(expected, abs=0.035), (n, hits)


@pytest.mark.parametrize(
    ("more", "fewer", "n", "coverage"),
    [(0.02, 0.0, 64, 1.0), (0.1, 0.02, 64, 0.971), (0.3, 0.1, 64, 0.952), (0.5, 0.05, 12, 0.965)],
)
def test_differences_of_paired_outcomes_are_covered(more, fewer, n, coverage):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(RUNS):
        kind = rng.choice(3, n, p=(more, fewer, 1.0 - more - fewer))
        ours, theirs = (kind != 1).astype(float), (kind != 0).astype(float)
        hits += covered(difference_estimate(ours, theirs, within=SHARE), more - fewer)
    assert hits / RUNS == pytest.approx(coverage, abs=0.035)


# --- what an interval is of -----------------------------------------------------------------------


def test_equal_outcomes_have_wilsons_interval_in_every_table():
    assert mean_estimate([1.0] * 64, within=SHARE) == wilson(64, 64)
    assert mean_estimate([0.0, 1.0, 1.0, 1.0, 1.0], within=SHARE) == wilson(4, 5)


@pytest.mark.parametrize("values", [[0.5] * 7, [0.0] * 7, [0.1 + 0.2] * 3 + [0.3] * 4])
def test_equal_amounts_have_no_interval_and_say_so(values):
    found = mean_estimate(values)
    assert not found.has_interval
    assert isnan(found.low)
    assert found.text().endswith(" (all equal)")


@pytest.mark.parametrize("within", [ANY, SHARE])
def test_few_values_have_no_interval(within):
    for n in (1, 4):
        assert not mean_estimate([0.0, 1.0, 1.0, 0.0][:n], within=within).has_interval
        assert not difference_estimate([0.25] * n, [1.0] * n, within=within).has_interval
    assert mean_estimate([0.08], within=within).text() == "0.08"
    assert mean_estimate([0.0, 0.1, 0.2, 0.3, 0.4], within=within).has_interval


def test_the_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = mean_estimate(values.tolist())
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.005
    )


def test_the_interval_leans_to_where_values_may_be_and_stays_in_their_range():
    values = [1.0, 1.0, 1.0, 1.0, 0.95, 0.9, 1.0, 0.6]
    found = mean_estimate(values, within=SHARE)
    assert found.high == 1.0
    assert found.value - found.low > 1.5 * (mean_estimate(values).high - found.value)
    flipped = mean_estimate([-value for value in values])
    assert (flipped.low, flipped.high) == pytest.approx(
        (-mean_estimate(values).high, -mean_estimate(values).low)
    )
    shifted = mean_estimate([10.0 * value + 3.0 for value in values])
    assert shifted.low == pytest.approx(10.0 * mean_estimate(values).low + 3.0)


def test_values_out_of_range_and_no_values_are_refused():
    with pytest.raises(ValueError, match=r"Values from 0 to 1\.5 - expected 0 to 1"):
        mean_estimate([0.0, 1.5], within=SHARE)
    with pytest.raises(ValueError, match="no values"):
        mean_estimate([])
    with pytest.raises(ValueError, match="2 values beside 1 - expected pairs"):
        difference_estimate([0.0, 1.0], [1.0])
    assert mean_estimate([1.0 + 1e-7] * 5, within=SHARE) == wilson(5, 5)


def test_differences_are_of_pairs():
    """A gain that is nearly the same in all cases is certain, however much cases differ."""
    theirs = [0.1 * k for k in range(8)]
    gains = [0.04, 0.05, 0.06, 0.05, 0.04, 0.06, 0.05, 0.05]
    found = difference_estimate([a + b for a, b in zip(theirs, gains)], theirs, within=SHARE)
    assert found.value == pytest.approx(0.05)
    assert 0.04 < found.low < found.high < 0.06
    assert not difference_estimate(theirs, theirs).has_interval


def test_paired_outcomes_that_always_agree_do_not_prove_that_they_always_will():
    found = difference_estimate([1] * 64, [1] * 64, within=SHARE)
    # Bonett and Price: one pair more of either kind.
    half = 1.959964 * (2 / 66 / 66) ** 0.5
    assert (found.value, found.n) == (0.0, 64)
    assert (found.low, found.high) == pytest.approx((-half, half))


# --- words and files ------------------------------------------------------------------------------


def test_an_estimate_prints_its_interval():
    assert wilson(9, 10).text() == "0.90 [0.60, 0.98]"
    assert wilson(9, 10).text(3) == "0.900 [0.596, 0.982]"
    assert Estimate(0.5, -0.25, 1.0, 9).text(sign="+") == "+0.50 [-0.25, +1.00]"


def test_an_interval_is_never_printed_without_width():
    assert Estimate(0.0101, 0.0099, 0.0103, 9).text() == "0.0101 [0.0099, 0.0103]"
    assert Estimate(1.0, 1.0, 1.0, 9).text() == "1.00 (all equal)"  # as in older files
    assert without_interval(1.0, 1).text() == "1.00"


def test_an_estimate_without_an_interval_is_null_in_files_and_read_again():
    for one in (wilson(3, 5), without_interval(0.5, 2)):
        written = json.loads(json.dumps(json_values(one), allow_nan=False))
        assert estimate_of(written).text() == one.text()
        assert estimate_of(written).n == one.n
    assert json_values(without_interval(0.5, 2))["low"] is None


def test_a_known_number_can_be_taken_from_an_estimate():
    found = wilson(3, 5).less(0.5)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.low == pytest.approx(wilson(3, 5).high - wilson(3, 5).low)
