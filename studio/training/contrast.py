"""Captions that say the wrong side: what teaches a denoiser to mind its view words.

A view word changes the loss by a few percent, and only at noisy timesteps; among the words of
colour and kind its gradient drowns. The gradient of the *difference* of two losses, of the same
noisy latents under the right word and under a wrong one, has none of that in common:

    contrast = tau * softplus((loss_right - loss_wrong) / tau)

This is the diffusion classifier's cross-entropy between two captions (arXiv 2303.16203, eq. 6)
with temperature ``tau``. It is silent once the right word fits better by some tau, where the
ordinary loss has learned to carry on, and it does not reward a still worse wrong prediction.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from scenes.toybox.catalog import KINDS

__all__ = ["OPPOSITE_VIEWS", "ContrastConfig", "WrongViews", "contrast_loss", "open_share"]

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


@dataclass(frozen=True)
class ContrastConfig:
    """How much of a batch is compared with wrong view words."""

    share: float = 0.0
    """Share of a batch's rows for the comparison, where each image takes two; 0: no comparison."""
    weight: float = 4.0
    """Weight beside the ordinary loss."""
    temperature: float = 0.03
    """Difference of losses at which the comparison falls silent."""
    noise_tilt: float = 2.0
    """Timesteps of these rows have density p (t/T)^(p-1): a side is decided in noise."""
    widening: tuple[float, float] = (0.025, 0.4)
    """Fractions of the training between which it grows from one kind of object to all."""
    least_difference: float = 0.03
    """Kinds whose sides differ less are left out: squared distance of mean latents."""

    def __post_init__(self) -> None:
        """Refuse a share that leaves no row for other captions."""
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"contrast.share is {self.share} - expected 0 or more, less than 1.")

    def images(self, batch_size: int) -> int:
        """Images of a batch that are compared."""
        return int(batch_size * self.share) // 2


class WrongViews:
    """The rows of a cache whose captions name the view of one object, by kind.

    Attributes:
        kinds: rows of each kind, ``{view: rows}``, those first whose sides differ most.
    """

    def __init__(
        self,
        captions: Sequence[str],
        latents: np.ndarray,
        encode: Callable[[list[str]], Float[Tensor, "b n d"]],
        least_difference: float,
    ) -> None:
        """``latents [n, c, h, w]`` of the captions; ``encode`` turns captions into text states.

        Raises:
            ValueError: no kind of object has sides that differ.
        """
        self.captions, self.encode = captions, encode
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
    ) -> tuple[np.ndarray, Float[Tensor, "b n d"]]:
        """Rows of the first kinds, sorted, and the states of their captions with a wrong view."""
        opened = self.kinds[: max(1, math.ceil(share_of_kinds * len(self.kinds)))]
        of_view = [
            np.concatenate([kind[view] for kind in opened if view in kind])
            for view in (*OPPOSITE_VIEWS, OVERHEAD)
            if any(view in kind for kind in opened)
        ]
        views = rng.integers(len(of_view), size=count)
        chosen = np.sort([rng.choice(of_view[view]) for view in views])
        return chosen, self.encode([self.contradict(self.captions[k], rng) for k in chosen])

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


def open_share(progress: float, widening: tuple[float, float]) -> float:
    """Share of the kinds that is compared at ``progress`` of the training."""
    first, last = widening
    return min(1.0, max(0.0, (progress - first) / (last - first)))


def contrast_loss(
    right: Float[Tensor, " b"], wrong: Float[Tensor, " b"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of tau softplus((right - wrong) / tau) over rows, of their losses under two captions."""
    return (temperature * functional.softplus((right - wrong) / temperature)).mean()
