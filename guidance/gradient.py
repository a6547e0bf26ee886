"""From a wanted gradient to a loss: the identity that serves every guidance rule.

With sg the stop-gradient, ``loss = 1/2 |z - sg(z - g)|^2 / B`` has ``d loss / d z = g / B``. The
value of the loss is ``|g|^2 / 2B`` and says nothing about progress; log the norm of ``g`` instead.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["clip_gradient", "gradient_loss", "gradient_norm", "replace_non_finite"]


def gradient_loss(latents: Float[Tensor, "b ..."], gradient: Tensor) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to ``latents`` is ``gradient / b``.

    ``z - sg(z)`` is exactly 0, so no digits of a small gradient are lost beside large latents.
    """
    residual = (latents - latents.detach()) + gradient.detach()
    return 0.5 * residual.square().sum() / latents.shape[0]


def gradient_norm(gradient: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Mean over the samples of the Euclidean norm of their gradients."""
    return gradient.flatten(1).norm(dim=1).mean()


def replace_non_finite(gradient: Tensor) -> tuple[Tensor, Int[Tensor, ""]]:
    """The gradient with NaN and infinities set to 0, and how many entries that were."""
    finite = torch.isfinite(gradient)
    return torch.where(finite, gradient, 0.0), (~finite).sum()


def clip_gradient(gradient: Tensor, bound: float) -> Tensor:
    """Each entry limited to ``-bound..bound``."""
    return gradient.clamp(-bound, bound)
