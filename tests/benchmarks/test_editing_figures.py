"""The figures of the editing benchmark: means, pairs, lines and ranks, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.editing.adapters import paired_figures
from benchmarks.editing.bench import Found, Target, figures_of, with_targets
from benchmarks.editing.regression import rank_of_means, slope_and_fit
from studio.evaluation.intervals import ANY, Estimate, wilson


def test_slope_and_fit_are_those_of_a_line():
    asked = [-12.8, -6.4, 6.4, 12.8] * 5
    slope, fit = slope_and_fit(asked, [0.8 * x + 1.0 for x in asked])
    assert (slope.value, fit.value, slope.n) == (pytest.approx(0.8), pytest.approx(1.0), 20)
    assert not slope.has_interval, "all moves say the same"
    noisy = [0.8 * x + (3.0, -3.0, -3.0, 3.0)[k % 4] for k, x in enumerate(asked)]
    slope, fit = slope_and_fit(asked, noisy)
    assert slope.value == pytest.approx(0.8)
    assert fit.value == pytest.approx(65.536 / (65.536 + 9.0))
    assert slope.low < 0.8 < slope.high
    assert fit.low < fit.value < fit.high < 1.0
    still = slope_and_fit(asked, [0.0] * 20)
    assert [one.value for one in still] == [0.0, 0.0]
    with pytest.raises(ValueError, match="2 moves were asked for and 1 came"):
        slope_and_fit([1.0, 2.0], [1.0])


@pytest.mark.parametrize("count", [8, 64])
def test_lines_are_covered(count):
    """Simulated with the moves of the row and twice the noise where more is asked."""
    asked = [(1, -1, -1, 1)[k % 4] * (6.4, 12.8)[k // 4 % 2] for k in range(count)]
    rng, x = np.random.default_rng(0), np.array(asked)
    noise = [np.abs(x) / 6.4 * rng.normal(size=count) for _ in range(300)]
    # R^2 of endless many such moves: 0.25^2 E x^2 over that and the mean square of the noise.
    explained, left = 0.0625 * (x**2).mean(), ((x / 6.4) ** 2).mean()
    truths = (0.25, explained / (explained + left))
    found = [slope_and_fit(asked, (0.25 * x + more).tolist()) for more in noise]
    for place, (truth, least) in enumerate(zip(truths, (0.91, 0.86), strict=True)):
        hits = [one[place].low <= truth <= one[place].high for one in found]
        assert least < sum(hits) / len(hits) < 0.99


def test_ranks_are_those_of_the_means():
    """Each case alone goes up and down; their means rise, fall, or stand still."""
    rising = [[0.0, 0.5, 0.2, 0.9], [0.1, 0.0, 0.6, 0.5]] * 8
    found = rank_of_means((1.0, 1.4, 1.8, 2.2), rising)
    assert (found.value, found.n) == (pytest.approx(1.0), 16)
    assert -1.0 <= found.low < found.high <= 1.0
    assert rank_of_means((1.0, 2.0), [[0.3, 0.4]] * 8).text() == "1.00 (all equal)"
    falling = [curve[::-1] for curve in rising]
    assert rank_of_means((1.0, 1.4, 1.8, 2.2), falling).value == pytest.approx(-1.0)
    assert rank_of_means((1.0, 2.0), [[0.3, 0.3]] * 4).value == 0.0
    swapped = [[curve[k] for k in (0, 2, 1, 3)] for curve in rising]
    assert rank_of_means((1.0, 1.4, 1.8, 2.2), swapped).value == pytest.approx(0.8)


def test_figures_are_paired_and_know_their_targets():
    found = Found(("a",))
    for k in range(4):
        found.add({"success": (k > 0, k > 1), "error": 0.1 * k})
    targets = {"success": Target(0.7), "error": Target(0.1, is_least=False)}
    success, error = with_targets(figures_of(found), targets)
    assert (success.ours.value, success.baseline.value, success.difference.value) == (
        *(0.75, 0.5, 0.25),
    )
    assert (success.target, success.passed, success.ours.n) == ("at least 0.7", True, 4)
    assert error.baseline is error.difference is None
    assert (error.target, error.passed) == ("at most 0.1", False)
    assert [figure.passed for figure in with_targets([success, error], {})] == [None, None]


def test_outcomes_have_wilsons_interval_and_amounts_none_where_they_are_equal():
    found = Found(("a",), known={"moved": 0.0, "way": 1.0})
    for k in range(16):
        found.add({"success": (True, k > 0), "both": (True, True), "moved": k > 3})
        found.add({"way": 3.0, "away": (0.0, 0.0)}, within=ANY)
    figures = {figure.name: figure for figure in figures_of(found)}
    assert figures["success"].ours == wilson(16, 16)
    assert figures["success"].baseline == wilson(15, 16)
    assert figures["success"].difference.low < 0.0, "one case in sixteen proves nothing"
    assert figures["both"].difference.text(sign="+") == "+0.00 [-0.15, +0.15]"
    assert figures["away"].ours.text() == figures["away"].difference.text() == "0.00 (all equal)"
    moved = figures["moved"]
    assert moved.ours == moved.difference == wilson(12, 16)
    assert not moved.baseline.has_interval, "what nothing moves stays, by definition"
    assert figures["way"].difference.value == 2.0
    found.add({"share": 1.5})
    with pytest.raises(ValueError, match="expected 0 to 1"):
        figures_of(found)


def test_ready_figures_stand_beside_their_baselines():
    estimates = {
        name: Estimate(value, 0.0, 1.0, 8)
        for name, value in (("plain_color", 0.9), ("depth_color", 0.8), ("depth_gain", 0.3))
    }
    figures = paired_figures(estimates, lambda name: f"plain_{name.partition('_')[2]}")
    assert [(f.name, f.ours.value) for f in figures] == [("depth_color", 0.8), ("depth_gain", 0.3)]
    assert [f.baseline and f.baseline.value for f in figures] == [0.9, None]
    (alone,) = paired_figures({"outside": estimates["depth_gain"]}, lambda name: name)
    assert (alone.name, alone.baseline) == ("outside", None)
