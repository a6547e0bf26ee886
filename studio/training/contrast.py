"""Captions that say the wrong side: what teaches a denoiser to mind its view words.

A view word changes the loss by a few percent, and only at noisy timesteps; among the words of
colour and kind its gradient drowns. The gradient of the *difference* of two losses, of the same
noisy latents under the right word and under a wrong one, has none of that in common:

    contrast = tau * softplus((loss_right - loss_wrong) / tau)

This is the diffusion classifier's cross-entropy between two captions (arXiv 2303.16203, eq. 6)
with temperature ``tau``. It is silent once the right word fits better by some tau, where the
ordinary loss has learned to carry on, and it does not reward a still worse wrong prediction.

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
"""Views that are compared, each with the one from the other side."""


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
    """The rows of a cache whose captions name a side of one object, by kind.

    Attributes:
        kinds: rows of each kind, those first whose sides differ most.
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
        ends = tuple(f", {view}" for view in OPPOSITE_VIEWS)
        of_kind: dict[str, list[int]] = {}
        for row, caption in enumerate(captions):
            if caption.endswith(ends) and (kind := _kind_of(caption)):
                of_kind.setdefault(kind, []).append(row)
        ranked = sorted((-self._difference(rows, latents), kind) for kind, rows in of_kind.items())
        self.kinds = [np.array(of_kind[k]) for minus, k in ranked if -minus >= least_difference]
        if not self.kinds:
            raise ValueError(
                "No kind of object is seen from opposite sides that differ by contrast."
                f"least_difference = {least_difference}. Lower it, or set contrast.share to 0."
            )

    def _difference(self, rows: list[int], latents: np.ndarray) -> float:
        """Squared distance of the mean latents of opposite sides, for both pairs together."""
        means = {}
        for view in OPPOSITE_VIEWS:
            seen = [row for row in rows if self.captions[row].endswith(f", {view}")]
            if not seen:
                return 0.0
            means[view] = latents[seen].astype(np.float32).mean(0)
        pairs = [np.square(means[v] - means[w]).mean() for v, w in OPPOSITE_VIEWS.items()]
        return float(sum(pairs)) / 2  # each pair was counted from both of its sides

    def draw(
        self, rng: np.random.Generator, count: int, share_of_kinds: float
    ) -> tuple[np.ndarray, Float[Tensor, "b n d"]]:
        """Rows of the first kinds, sorted, and the states of their captions with a wrong view."""
        opened = max(1, math.ceil(share_of_kinds * len(self.kinds)))
        chosen = np.sort(rng.choice(np.concatenate(self.kinds[:opened]), count))
        return chosen, self.encode([self.contradict(self.captions[k]) for k in chosen])

    @staticmethod
    def contradict(caption: str) -> str:
        """``caption`` with the opposite of the view that it names."""
        subject, view = caption.rsplit(", ", 1)
        return f"{subject}, {OPPOSITE_VIEWS[view]}"


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
