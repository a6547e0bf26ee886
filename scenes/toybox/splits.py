"""The fixed train / held-out split, by attribute combination.

Every combination of kind and colour whose hash falls under 12 % is held out: no training image
shows it in any pattern, so it measures whether a model composes attributes. Individuals are split
too: training uses even seeds of shape, evaluation odd ones.
"""

from __future__ import annotations

import hashlib

import numpy as np

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.objects import ObjectSpec

__all__ = ["combinations", "is_held_out", "sample_object"]

HELD_OUT_SHARE = 0.12
PLAIN_SHARE = 0.7
N_INDIVIDUALS = 4000


def is_held_out(kind: str, color: str) -> bool:
    """Whether the combination is kept from training (a purple duck always is)."""
    if (kind, color) == ("duck", "purple"):
        return True
    digest = hashlib.sha256(f"toybox split/{kind}/{color}".encode()).digest()
    return int.from_bytes(digest[:4], "little") / 2**32 < HELD_OUT_SHARE


def combinations(held_out: bool) -> list[tuple[str, str]]:
    """All (kind, colour) pairs of one side of the split, in catalogue order."""
    return [(k, c) for k in KIND_NAMES for c in COLOR_NAMES if is_held_out(k, c) == held_out]


def sample_object(
    rng: np.random.Generator, pairs: list[tuple[str, str]], *, individual_parity: int
) -> ObjectSpec:
    """A random object of the given pairs; 70 % plain, the rest evenly patterned."""
    kind, color = pairs[int(rng.integers(len(pairs)))]
    plain = rng.random() < PLAIN_SHARE
    pattern = PATTERNS[0] if plain else PATTERNS[1 + int(rng.integers(len(PATTERNS) - 1))]
    individual = 2 * int(rng.integers(N_INDIVIDUALS // 2)) + individual_parity
    return ObjectSpec(kind, color, pattern, individual)
