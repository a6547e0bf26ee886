"""Right captions against wrong ones: what teaches a denoiser to mind single words.

A view word changes the loss by a few percent, and only at noisy timesteps; among the words of
colour and kind its gradient drowns. The gradient of the *difference* of two losses, of the same
noisy latents under the right words and under wrong ones, has none of that in common:

    contrast = tau * softplus((loss_right - loss_wrong) / tau)

This is the diffusion classifier's cross-entropy between two captions (arXiv 2303.16203, eq. 6)
with temperature ``tau``. It is silent once the right words fit better by some tau, where the
ordinary loss has learned to carry on, and it does not reward a still worse wrong prediction.

What is wrong is the view of one object (:mod:`studio.training.contrast_views`), or who of two is
what (:mod:`studio.training.contrast_bindings`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from studio.training.contrast_bindings import WrongBindings
from studio.training.contrast_views import WrongViews

__all__ = ["ContrastConfig", "WrongWords", "contrast_loss", "open_share"]


@dataclass(frozen=True)
class ContrastConfig:
    """How much of a batch is compared with wrong words."""

    share: float = 0.0
    """Share of a batch's rows for the comparison, where each image takes two; 0: no comparison."""
    bindings: float = 0.0
    """Share of the compared images that show two objects, told with each other's words."""
    weight: float = 4.0
    """Weight beside the ordinary loss."""
    temperature: float = 0.03
    """Difference of losses at which the comparison falls silent."""
    noise_tilt: float = 2.0
    """Timesteps of these rows have density p (t/T)^(p-1): layout is decided in noise."""
    widening: tuple[float, float] = (0.025, 0.4)
    """Fractions of the training between which views grow from one kind of object to all."""
    least_difference: float = 0.03
    """Kinds whose sides differ less are left out: squared distance of mean latents."""

    def __post_init__(self) -> None:
        """Refuse a share that leaves no row for other captions."""
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"contrast.share is {self.share} - expected 0 or more, less than 1.")
        if not 0.0 <= self.bindings < 1.0:
            raise ValueError(
                f"contrast.bindings is {self.bindings} - expected 0 or more, less than 1."
            )

    def images(self, batch_size: int) -> int:
        """Images of a batch that are compared."""
        return int(batch_size * self.share) // 2


class WrongWords:
    """Rows of a cache whose captions can be made wrong, and the states of wrong ones."""

    def __init__(
        self,
        config: ContrastConfig,
        captions: Sequence[str],
        latents: np.ndarray,
        encode: Callable[[list[str]], Float[Tensor, "b n d"]],
    ) -> None:
        """``latents [n, c, h, w]`` of the captions; ``encode`` turns captions into text states.

        Raises:
            ValueError: no caption can be made wrong in a way that ``config`` asks for.
        """
        self.config, self.encode = config, encode
        self.views = WrongViews(captions, latents, config.least_difference)
        self.bindings = WrongBindings(captions) if config.bindings else None

    def draw(
        self, rng: np.random.Generator, count: int, progress: float
    ) -> tuple[np.ndarray, Float[Tensor, "b n d"]]:
        """``count`` rows and the states of wrong captions of them.

        Args:
            rng: draws.
            count: how many.
            progress: of the training, 0..1, with which the kinds of the views open.
        """
        of_two = 0 if self.bindings is None else int(rng.binomial(count, self.config.bindings))
        opened = open_share(progress, self.config.widening)
        rows, wrong = self.views.draw(rng, count - of_two, opened)
        if of_two:
            others, exchanged = self.bindings.draw(rng, of_two)
            rows, wrong = np.concatenate([rows, others]), [*wrong, *exchanged]
        return rows, self.encode(wrong)


def open_share(progress: float, widening: tuple[float, float]) -> float:
    """Share of the kinds that is compared at ``progress`` of the training."""
    first, last = widening
    return min(1.0, max(0.0, (progress - first) / (last - first)))


def contrast_loss(
    right: Float[Tensor, " b"], wrong: Float[Tensor, " b"], temperature: float
) -> Float[Tensor, ""]:
    """Mean of tau softplus((right - wrong) / tau) over rows, of their losses under two captions."""
    return (temperature * functional.softplus((right - wrong) / temperature)).mean()
