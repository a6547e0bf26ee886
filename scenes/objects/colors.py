"""Words for colours as people use them of objects, by hue, saturation and brightness.

words = color_words(rgb)            # [n, 3] display-referred -> [n] indices into WORDS
color_shares(rgb, weights)          # {"red": 0.8, "black": 0.2}, largest first
"""

from __future__ import annotations

import numpy as np

__all__ = ["RECOLORS", "WORDS", "color_shares", "color_words"]

WORDS = (
    *("black", "grey", "white", "red", "orange", "brown", "beige", "yellow", "green", "blue"),
    *("purple", "pink"),
)
RECOLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.80, 0.12, 0.12),
    "orange": (0.93, 0.50, 0.10),
    "yellow": (0.94, 0.82, 0.16),
    "green": (0.16, 0.58, 0.22),
    "blue": (0.14, 0.32, 0.80),
    "purple": (0.50, 0.18, 0.68),
    "pink": (0.95, 0.55, 0.72),
    "white": (0.93, 0.93, 0.93),
    "black": (0.10, 0.10, 0.11),
    "brown": (0.44, 0.26, 0.13),
}
"""What objects are painted with for training: the toybox's colours, a little duller."""


def _hue_deg(rgb: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    r, g, b = rgb.T
    safe = np.maximum(chroma, 1e-9)
    sector = np.where(
        high == r, (g - b) / safe, np.where(high == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    return (sector * 60.0) % 360.0


def color_words(rgb: np.ndarray) -> np.ndarray:
    """Index into ``WORDS`` of each colour ``[n, 3]`` in 0..1."""
    rgb = np.asarray(rgb, np.float64).reshape(-1, 3)
    high, low = rgb.max(1), rgb.min(1)
    chroma = high - low
    hue = _hue_deg(rgb, high, chroma)
    vivid = chroma / np.maximum(high, 1e-9)
    grey = (chroma < 0.07) | (vivid < 0.13)
    warm = (hue < 52) | (hue >= 345)
    rules = (
        (high < 0.17, "black"),
        (grey & (high < 0.24), "black"),
        (grey & (high > 0.80), "white"),
        (grey, "grey"),
        (warm & (high > 0.68) & (vivid < 0.42) & (hue >= 18) & (hue < 60), "beige"),
        ((hue >= 48) & (hue < 66) & (high > 0.55), "yellow"),
        ((hue >= 14) & (hue < 48) & ((high < 0.72) | (vivid < 0.55)), "brown"),
        ((hue >= 14) & (hue < 40), "orange"),
        ((hue >= 40) & (hue < 66), "yellow"),
        ((hue >= 66) & (hue < 168), "green"),
        ((hue >= 168) & (hue < 258), "blue"),
        ((hue >= 258) & (hue < 300), "purple"),
        ((hue >= 300) & (high > 0.68) & (vivid < 0.62), "pink"),
        ((hue >= 300) & (hue < 332), "purple"),
        ((hue < 14) & (high > 0.72) & (vivid < 0.45), "pink"),
        ((high < 0.45) & (vivid < 0.6), "brown"),
    )
    red = WORDS.index("red")
    return np.select([r for r, _ in rules], [WORDS.index(w) for _, w in rules], red)


def color_shares(rgb: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """Share of each word among colours ``[n, 3]``, largest first; none of nothing."""
    index = color_words(rgb)
    total = np.bincount(index, weights, minlength=len(WORDS)).astype(float)
    total /= max(total.sum(), 1e-12)
    order = np.argsort(-total, kind="stable")
    return {WORDS[k]: float(total[k]) for k in order if total[k] > 0}
