"""Preconditioned cross-attention: text states whitened while training, stock weights afterwards.

A frozen sentence encoder puts most of its variance into a few directions that all captions share:
states of "left side view" and "right side view" differ by a tenth of their size. A network that
reads them through ``k = A x`` learns such a difference a hundred times slower than a common one.
So training sees ``x W`` with the symmetric W = U (Lambda + ridge * mean Lambda)^-1/2 U^T of the
states' second moment U Lambda U^T, and learns A' in ``k = A' W x``. A' starts as A W^-1, which
changes nothing, and ends folded into A = A' W, so that the saved folder knows nothing of it: the
same that :func:`studio.training.vae.whiten_latents` does for latents.

The moment is not centred, so W needs no bias, which the stock projections do not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.precision import full_precision

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["TextPreconditioner", "text_projections"]


def text_projections(unet: UNet2DConditionModel) -> list[nn.Linear]:
    """The projections of a stock UNet that read text states: keys and values of cross-attention."""
    return [
        projection
        for name, module in unet.named_modules()
        if name.endswith("attn2")
        for projection in (module.to_k, module.to_v)
    ]


class TextPreconditioner:
    """The matrix W of one training.

    Attributes:
        matrix: ``[width, width]`` float32, symmetric.
        inverse: its inverse, likewise.
    """

    def __init__(self, moment: Float[Tensor, "width width"], ridge: float) -> None:
        """W of a second moment; ``ridge`` limits how much a direction without variance grows."""
        values, vectors = torch.linalg.eigh(moment.double())
        scale = (values.clamp(min=0) + ridge * values.mean()).rsqrt()
        self.matrix = (vectors * scale @ vectors.T).float()
        self.inverse = (vectors / scale @ vectors.T).float()
        self._placed = self.matrix

    @classmethod
    def of_states(cls, states: np.ndarray, ridge: float) -> TextPreconditioner:
        """W of text states ``[n, tokens, width]``, all tokens alike."""
        width = states.shape[-1]
        total = torch.zeros(width, width, dtype=torch.float64)
        for start in range(0, len(states), 1024):
            part = np.array(states[start : start + 1024], dtype=np.float32).reshape(-1, width)
            rows = torch.from_numpy(part)
            total += (rows.T @ rows).double()
        return cls(total / (len(states) * states.shape[1]), ridge)

    def __call__(self, states: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """What a network in training reads instead of ``states``."""
        if self._placed.device != states.device:
            self._placed = self.matrix.to(states.device)
        # Rounding the large shared directions would drown the small ones that are scaled up; a
        # card's single precision may be TF32, which has 10 bits.
        exact = torch.float64 if states.is_cuda else states.dtype
        with full_precision(states.device):
            return (states.to(exact) @ self._placed.to(exact)).to(states.dtype)

    def enter(self, unet: UNet2DConditionModel) -> None:
        """Make ``unet`` read preconditioned states: A becomes A W^-1."""
        self._multiply(unet, self.inverse)

    def leave(self, unet: UNet2DConditionModel) -> None:
        """Make ``unet`` read plain states again: A' becomes A' W."""
        self._multiply(unet, self.matrix)

    @staticmethod
    @torch.no_grad()
    def _multiply(unet: UNet2DConditionModel, factor: Tensor) -> None:
        for projection in text_projections(unet):
            weight = projection.weight.double() @ factor.double().to(projection.weight.device)
            projection.weight.copy_(weight)
