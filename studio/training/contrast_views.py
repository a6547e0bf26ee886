"""Captions that say the wrong side, for lessons in view words.

What is not compared is forgotten: with sides alone, the word for views from above lost a third of
its effect. So an overhead view is compared with front and back, and those with it now and then; all
views are drawn alike often, though few images are seen from above.

Kinds of objects that have no sides teach nothing, and thirty kinds at once pull a small network
thirty ways. So the comparison begins with the kind whose sides differ most in the latents, which a
few hundred images teach, and widens to the next ones, to which the words carry over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

import numpy as np

from scenes.toybox.catalog import KINDS

__all__ = ["OPPOSITE_VIEWS", "WrongViews"]

OPPOSITE_VIEWS = {
    "left side view": "right side view",
    "right side view": "left side view",
    "front view": "back view",
    "back view": "front view",
}
"""Views from a side, each with the one from the other side."""

OVERHEAD = "overhead view"
FRONT_AND_BACK = ("front view", "back view")
FROM_ABOVE = 0.25


class WrongViews:
    """The rows of a cache whose captions name the view of one object, by kind.

    Attributes:
        kinds: rows of each kind, ``{view: rows}``, those first whose sides differ most.
    """

    def __init__(
        self, captions: Sequence[str], latents: np.ndarray, least_difference: float
    ) -> None:
        """``latents [n, c, h, w]`` of the captions.

        Raises:
            ValueError: no kind of object has sides that differ.
        """
        self.captions = captions
        of_kind: dict[str, dict[str, list[int]]] = {}
        for view in (*OPPOSITE_VIEWS, OVERHEAD):
            for row, caption in enumerate(captions):
                if caption.endswith(f", {view}") and (kind := _kind_of(caption)):
                    of_kind.setdefault(kind, {}).setdefault(view, []).append(row)
        ranked = sorted((-_difference(rows, latents), kind) for kind, rows in of_kind.items())
        self.kinds = [
            {view: np.array(rows) for view, rows in of_kind[kind].items()}
            for minus, kind in ranked
            if -minus >= least_difference
        ]
        if not self.kinds:
            raise ValueError(
                "No kind of object is seen from opposite sides that differ by contrast."
                f"least_difference = {least_difference}. Lower it, or set contrast.share to 0."
            )

    def draw(
        self, rng: np.random.Generator, count: int, share_of_kinds: float
    ) -> tuple[np.ndarray, list[str]]:
        """Rows of the first kinds, sorted, and their captions with a wrong view."""
        opened = self.kinds[: max(1, math.ceil(share_of_kinds * len(self.kinds)))]
        of_view = [
            np.concatenate([kind[view] for kind in opened if view in kind])
            for view in (*OPPOSITE_VIEWS, OVERHEAD)
            if any(view in kind for kind in opened)
        ]
        views = rng.integers(len(of_view), size=count)
        chosen = np.sort(np.array([rng.choice(of_view[view]) for view in views], dtype=np.int64))
        return chosen, [self.contradict(self.captions[k], rng) for k in chosen]

    @staticmethod
    def contradict(caption: str, rng: np.random.Generator) -> str:
        """``caption`` with another view than the one that it names: mostly the opposite one."""
        subject, view = caption.rsplit(", ", 1)
        if view == OVERHEAD:
            return f"{subject}, {rng.choice(FRONT_AND_BACK)}"
        from_above = view in FRONT_AND_BACK and rng.random() < FROM_ABOVE
        return f"{subject}, {OVERHEAD if from_above else OPPOSITE_VIEWS[view]}"


def _difference(rows: dict[str, list[int]], latents: np.ndarray) -> float:
    """Squared distance of the mean latents of opposite sides, for both pairs together."""
    if not all(view in rows for view in OPPOSITE_VIEWS):
        return 0.0
    means = {v: latents[rows[v]].astype(np.float32).mean(0) for v in OPPOSITE_VIEWS}
    pairs = [np.square(means[v] - means[w]).mean() for v, w in OPPOSITE_VIEWS.items()]
    return float(sum(pairs)) / 2  # each pair was counted from both of its sides


def _kind_of(caption: str) -> str | None:
    """The toybox kind that a caption names, if it is one."""
    named = [kind for kind, pattern in _noun_patterns().items() if pattern.search(caption)]
    return named[0] if len(named) == 1 else None


@cache
def _noun_patterns() -> dict[str, re.Pattern[str]]:
    nouns = {kind: (it.noun, *it.synonyms) for kind, it in KINDS.items()}
    return {k: re.compile(rf"\b({'|'.join(map(re.escape, n))})\b") for k, n in nouns.items()}
