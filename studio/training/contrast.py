"""Captions that say the wrong side: what teaches a denoiser to mind its view words.

A view word changes the loss by a few percent, and only at noisy timesteps; among the words of
colour and kind its gradient drowns. The gradient of the *difference* of two losses, of the same
noisy latents under the right word and under a wrong one, has none of that in common:

    contrast = tau * softplus((loss_right - loss_wrong) / tau)

This is the diffusion classifier's cross-entropy between two captions (arXiv 2303.16203, eq. 6)
with temperature ``tau``. It is silent once the right word fits better by some tau, where the
ordinary loss has learned to carry on, and it does not reward a still worse wrong prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["CONTRARY_VIEWS", "ContrastConfig", "WrongViews", "contrast_loss"]

CONTRARY_VIEWS: dict[str, tuple[str, ...]] = {
    "left side view": ("right side view", "right side view", "front view", "back view"),
    "right side view": ("left side view", "left side view", "front view", "back view"),
    "side view": ("front view", "back view", "overhead view"),
    "front view": ("back view", "back view", "left side view", "right side view"),
    "back view": ("front view", "front view", "left side view", "right side view"),
    "overhead view": ("front view", "back view", "side view"),
}
"""Wrong words for each right one; the opposite side is drawn twice as often as a neighbour."""


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

    def __post_init__(self) -> None:
        """Refuse a share that leaves no row for other captions."""
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"contrast.share is {self.share} - expected 0 or more, less than 1.")

    def images(self, batch_size: int) -> int:
        """Images of a batch that are compared."""
        return int(batch_size * self.share) // 2


class WrongViews:
    """The captions of a cache that name a view, and contrary ones for them."""

    def __init__(
        self, captions: Sequence[str], encode: Callable[[list[str]], Float[Tensor, "b n d"]]
    ) -> None:
        """``encode`` turns captions into text states.

        Raises:
            ValueError: no caption names a view.
        """
        self.captions, self.encode = captions, encode
        ends = tuple(f", {view}" for view in CONTRARY_VIEWS)
        self.rows = np.array([k for k, text in enumerate(captions) if text.endswith(ends)])
        if not len(self.rows):
            raise ValueError(
                "No caption ends in a view, such as ', front view', so none can be made wrong. "
                "Set contrast.share to 0, or train on captions with views."
            )

    def draw(
        self, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, Float[Tensor, "b n d"]]:
        """Rows of the cache, sorted, and the states of their captions with a wrong view."""
        chosen = np.sort(rng.choice(self.rows, count))
        return chosen, self.encode([self.contradict(self.captions[k], rng) for k in chosen])

    @staticmethod
    def contradict(caption: str, rng: np.random.Generator) -> str:
        """``caption`` with another view than it names."""
        subject, view = caption.rsplit(", ", 1)
        wrong = CONTRARY_VIEWS[view]
        return f"{subject}, {wrong[rng.integers(len(wrong))]}"


def contrast_loss(
    right: Float[Tensor, " b"], wrong: Float[Tensor, " b"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of tau softplus((right - wrong) / tau) over rows, of their losses under two captions."""
    return (temperature * functional.softplus((right - wrong) / temperature)).mean()
