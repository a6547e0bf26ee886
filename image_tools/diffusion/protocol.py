"""What samplers and guidance rules need of a prior. ``DiffusionPrior`` and modified priors fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from image_tools.diffusion.conditions import Condition, TextEmbedding

__all__ = ["NoisePrior"]


@runtime_checkable
class NoisePrior(Protocol):
    """A model that predicts the noise in latents; shapes are those of ``DiffusionPrior``."""

    alphas_cumprod: Tensor

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [b, h, w, 3] to scaled latents [b, c, s, s], differentiable."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents to images [b, h, w, 3] in 0..1."""
        ...

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts to text embeddings, one row each."""
        ...

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts, where an empty one means no condition."""
        ...

    def predict_output(
        self, latents: Tensor, t: Tensor, condition: Condition | TextEmbedding
    ) -> Tensor:
        """The denoiser's output in its own parametrisation."""
        ...

    def to_noise(self, output: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        """Epsilon from the denoiser's output."""
        ...

    def guided_noise(
        self,
        latents: Tensor,
        t: Tensor,
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Tensor:
        """Epsilon after classifier-free guidance."""
        ...

    def predict_x0(self, latents: Tensor, t: Tensor, noise_pred: Tensor) -> Tensor:
        """Clean latents that the noise prediction implies."""
        ...
