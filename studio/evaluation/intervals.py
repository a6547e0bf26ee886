"""Confidence intervals: Wilson's for a share, the bootstrap for a mean of clusters.

Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927, Eq. 4.
Views of one asset are not independent draws, so a mean over assets is bootstrapped by asset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = ["Estimate", "bootstrap_mean", "wilson"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Independent observations behind it."""

    def text(self, decimals: int = 2) -> str:
        """Such as ``0.91 [0.86, 0.94]``."""
        value, low, high = (f"{x:.{decimals}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


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


def bootstrap_mean(
    values: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = 4000,
    seed: int = 0,
) -> Estimate:
    """The mean of one value per asset, with percentiles over assets drawn with replacement.

    Raises:
        ValueError: there are no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("bootstrap_mean got no values - expected at least one.")
    rng = np.random.default_rng(seed)
    means = array[rng.integers(0, len(array), (resamples, len(array)))].mean(1)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(float(array.mean()), float(low), float(high), len(array))
