"""Confidence intervals: Wilson's for a share of outcomes, a t that allows for skewness for others.

    mean_estimate([1, 1, 0, 1, 1], within=SHARE).text()       # 0.80 [0.38, 0.96]
    mean_estimate([0.82, 0.87, 0.79, 0.91, 0.84]).text()      # 0.85 [0.79, 0.91]
    difference_estimate([1, 1, 1, 0, 1], [0, 1, 0, 0, 0], within=SHARE)     # 0.60 [-0.11, 0.97]

Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927, Eq. 4.
Hall, "On the Removal of Skewness by Transformation", JRSS B 1992: a cubic of the studentised mean
has no skewness, and its inverse has a closed form. Deviations: Student's quantiles where Hall takes
normal ones, because there may be five values; and skewness is limited, because that of a single
outlier among few values would put one end of the interval where the inverse is infinitely steep.
Bonett and Price, "Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based
on Paired Data", Journal of Educational and Behavioral Statistics 2012.

Percentiles of bootstrapped means cover too little where values are few or most are equal: 0.85
instead of 0.95 for a share of 0.97 of 64, 0.86 for six draws of a normal distribution. What these
intervals cover is simulated in their tests: 0.94 to 0.96 of 64 values, 0.90 and more of six. Views
of one asset are not independent draws, so give one value for each asset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isnan, nan, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = [
    "ANY",
    "LEAST",
    "POSITIVE",
    "SHARE",
    "Estimate",
    "Range",
    "difference_estimate",
    "estimate_of",
    "interval_note",
    "json_values",
    "mean_estimate",
    "wilson",
    "without_interval",
]

CONFIDENCE = 0.95
LEAST = 5
"""Fewer values tell nothing of how they spread."""
Range = tuple[float, float]
"""The least and the largest value that there can be."""
ANY, POSITIVE, SHARE = (-inf, inf), (0.0, inf), (0.0, 1.0)
ROUNDING = 1e-6
"""Values may lie so far outside of their range, by sums in single precision."""
LEAST_SPREAD = 1e-9
"""Values that differ by less are equal but for rounding."""
MOST_STEEP = 0.9
"""How near an end comes to where Hall's inverse is infinitely steep, as a share of the way."""
LEAST_SKEWNESS = 1e-6
"""Below this the transformation is the identity, and its inverse loses digits."""
MOST_DECIMALS = 6


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval, or without one."""

    value: float
    low: float
    """NaN where there is no interval."""
    high: float
    n: int
    """Independent observations behind it."""

    @property
    def has_interval(self) -> bool:
        """False for too few values and for equal ones, which tell nothing of how they spread."""
        return self.low < self.high

    def text(self, decimals: int = 2, *, sign: str = "") -> str:
        """Such as ``0.91 [0.86, 0.94]``; with more decimals where both ends would read alike.

        Args:
            decimals: of all three numbers.
            sign: "+" to show that of positive numbers too.
        """
        form = f"{sign}.{decimals}f"
        value, low, high = (format(x, form) for x in (self.value, self.low, self.high))
        if not self.has_interval:
            return value if self.n < LEAST else f"{value} (all equal)"
        if low == high and decimals < MOST_DECIMALS:
            return self.text(decimals + 1, sign=sign)
        return f"{value} [{low}, {high}]"

    def less(self, constant: float) -> Estimate:
        """The same figure beside a number that is known exactly."""
        return Estimate(self.value - constant, self.low - constant, self.high - constant, self.n)


def without_interval(value: float, n: int) -> Estimate:
    """A figure of which nothing is known but its value."""
    return Estimate(float(value), nan, nan, n)


def interval_note(unit: str) -> str:
    """How to read a table of means and their intervals.

    Args:
        unit: what the means are over, such as "subjects".
    """
    return (
        f"Means over {unit} with 95 % intervals, but none of fewer than {LEAST} {unit} nor of "
        "equal values, unless they are shares of 0 or 1."
    )


def json_values(instance: Any) -> dict[str, Any]:
    """A dataclass with estimates in it, as JSON values; an interval that is not there is null."""
    return asdict(instance, dict_factory=_without_nan)


def _without_nan(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and isnan(v) else v for k, v in pairs}


def estimate_of(values: Mapping[str, Any]) -> Estimate:
    """The estimate that :func:`json_values` was given."""
    low, high = (nan if values[end] is None else values[end] for end in ("low", "high"))
    return Estimate(values["value"], low, high, values["n"])


def wilson(successes: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate:
    """A share of successes among ``n`` independent trials.

    Raises:
        ValueError: ``n`` is not positive, or ``successes`` is not in 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} - expected 0 to n of at least 1.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Estimate(share, float(low), float(high), n)


def mean_estimate(
    values: Sequence[float], *, within: Range = ANY, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of independent values; without an interval for fewer than five, and for equal ones.

    Args:
        values: one for each asset or case.
        within: what values are possible, which an interval does not leave. Of values in ``SHARE``
            that are all 0 or 1 the interval is Wilson's, so that equal ones have one too.
        confidence: of the interval.

    Raises:
        ValueError: there are no values, or one is outside of ``within``.
    """
    array = _checked(values, within)
    if len(array) < LEAST:
        return without_interval(array.mean(), len(array))
    if within == SHARE and _is_binary(array):
        return wilson(int(array.sum()), len(array), confidence=confidence)
    if np.ptp(array) < LEAST_SPREAD:
        return without_interval(array.mean(), len(array))
    low, high = np.clip(_skewed_t(array, confidence), *within)
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def difference_estimate(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    within: Range = ANY,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The mean of ours less theirs, case by case.

    Args:
        ours: a value for each case.
        theirs: the other value of the same cases.
        within: what values are possible. Of values in ``SHARE`` that are all 0 or 1 the interval is
            Bonett and Price's, which has a width also where all pairs are equal.
        confidence: of the interval.

    Raises:
        ValueError: the two are not as many, there are none, or one is outside of ``within``.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} values beside {len(theirs)} - expected pairs.")
    first, second = _checked(ours, within), _checked(theirs, within)
    if len(first) >= LEAST and within == SHARE and _is_binary([*first, *second]):
        return _matched_shares(first, second, confidence)
    low, high = within
    return mean_estimate(first - second, within=(low - high, high - low), confidence=confidence)


def _checked(values: Sequence[float], within: Range) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    low, high = within
    if not len(array):
        raise ValueError("There are no values - expected at least one.")
    if array.min() < low - ROUNDING or array.max() > high + ROUNDING:
        raise ValueError(
            f"Values from {array.min():g} to {array.max():g} - expected {low:g} to {high:g}."
        )
    return np.clip(array, low, high)


def _is_binary(values: Sequence[float]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _skewed_t(array: np.ndarray, confidence: float) -> list[float]:
    """Both ends, by Hall's transformation with Student's quantiles."""
    from scipy.special import stdtrit

    n, mean, deviation = len(array), array.mean(), array.std(ddof=1)
    quantile = float(stdtrit(n - 1, 0.5 + confidence / 2))
    most = MOST_STEEP * sqrt(n) / quantile
    skewness = float(np.clip(((array - mean) ** 3).mean() / deviation**3, -most, most))
    return [mean - deviation * _unskewed(t, skewness, n) for t in (quantile, -quantile)]


def _unskewed(t: float, skewness: float, n: int) -> float:
    """The deviation of a mean, in standard deviations of the values, whose transform is ``t``."""
    if abs(skewness) < LEAST_SKEWNESS:
        return t / sqrt(n)
    return 3.0 / skewness * (np.cbrt(1.0 + skewness * (t / sqrt(n) - skewness / (6.0 * n))) - 1.0)


def _matched_shares(ours: np.ndarray, theirs: np.ndarray, confidence: float) -> Estimate:
    """Of pairs of outcomes: one pair more of either difference, and of neither none."""
    n, z = len(ours), NormalDist().inv_cdf(0.5 + confidence / 2)
    more, fewer = (((ours - theirs) == sign).sum() for sign in (1.0, -1.0))
    p, q = (more + 1) / (n + 2), (fewer + 1) / (n + 2)
    half = z * sqrt((p + q - (p - q) ** 2) / (n + 2))
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    return Estimate(float((more - fewer) / n), float(low), float(high), n)
