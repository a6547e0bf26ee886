"""Does more come where more is asked? A line through what was asked and what came, and ranks.

    slope, fit = slope_and_fit(asked, came)
    rank = rank_of_means(scales, curves)

The slope is 1 where moves are as far as asked, the fit R^2 is the share of what came that the line
explains. The rank is Spearman's correlation of a setting and the mean over cases: 1 where the mean
rises with every step of the setting, -1 where it falls. Intervals are percentiles over cases drawn
with replacement.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from studio.evaluation.intervals import Estimate

__all__ = ["rank_of_means", "slope_and_fit"]

RESAMPLES = 4000
TAILS = (0.025, 0.975)
LEAST_SPREAD = 1e-12


def slope_and_fit(
    asked: Sequence[float], came: Sequence[float], *, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Slope of the least-squares line, and its R^2; 0 where all that was asked is the same.

    Raises:
        ValueError: the two are not as many, or fewer than two.
    """
    if len(asked) != len(came) or len(asked) < 2:
        raise ValueError(
            f"{len(asked)} moves were asked for and {len(came)} came - expected as many, at least "
            "2."
        )
    x, y = np.asarray(asked, dtype=np.float64), np.asarray(came, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    values, drawn = _line(x[None], y[None]), _line(x[rows], y[rows])
    return tuple(
        Estimate(float(value[0]), *map(float, np.quantile(many, TAILS)), len(x))
        for value, many in zip(values, drawn, strict=True)
    )


def rank_of_means(
    settings: Sequence[float], curves: Sequence[Sequence[float]], *, seed: int = 0
) -> Estimate:
    """Spearman's correlation of settings and the means of curves; 0 where all means are the same.

    Args:
        settings: such as scales.
        curves: for each case what came at each setting.
        seed: of the resampling.
    """
    array = np.asarray(curves, dtype=np.float64)
    rows = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    means = np.concatenate([array.mean(0)[None], array[rows].mean(1)])
    slopes, fits = _line(np.broadcast_to(rankdata(settings), means.shape), rankdata(means, axis=1))
    ranks = np.sign(slopes) * np.sqrt(fits)
    return Estimate(float(ranks[0]), *map(float, np.quantile(ranks[1:], TAILS)), len(array))


def _line(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and fits of each row."""
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    xx, yy, xy = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
    slope = np.where(xx > LEAST_SPREAD, xy / np.maximum(xx, LEAST_SPREAD), 0.0)
    fit = np.where(yy > LEAST_SPREAD, slope * xy / np.maximum(yy, LEAST_SPREAD), 0.0)
    return slope, fit
