"""The common part of priors around other priors.

A ``WrappedPrior`` is the inner prior in all that is not defined anew (device, schedule, sizes, the
denoiser). A ``ModifiedPrior`` is a tool that adds to conditions: it says in ``modify`` what each
condition of a call becomes. Where that is the condition itself, the prediction is bit for bit the
inner prior's. Both may wrap priors that are wrapped themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.protocol import NoisePrior
from renderers.errors import ShapeError

__all__ = ["ModifiedPrior", "WrappedPrior", "conditional_rows", "rows_of"]


def rows_of(images: Float[Tensor, "b ..."], rows: int, name: str) -> Float[Tensor, "rows ..."]:
    """One image for each row: a batch is repeated as a whole, as guidance stacks its halves.

    Raises:
        ShapeError: if the rows are not whole batches.
    """
    if len(images) == 0 or rows % len(images):
        raise ShapeError(
            f"{name} has {len(images)} images for {rows} rows of latents. Give one image, or one "
            "for each latent."
        )
    return images.repeat(rows // len(images), *[1] * (images.ndim - 1))


def conditional_rows(condition: Condition, rows: int, *, is_cond: bool) -> Bool[Tensor, " rows"]:
    """Which rows of a call are told what a tool shows: those without the role of an "uncond" one.

    Args:
        condition: of so many rows.
        rows: latents of the call.
        is_cond: what rows without roles are.
    """
    roles = condition.roles or ("cond" if is_cond else "uncond",) * rows
    return torch.tensor([not role.startswith("uncond") for role in roles])


class WrappedPrior:
    """A ``NoisePrior`` that is another one wherever nothing else is said."""

    def __init__(self, plain: NoisePrior) -> None:
        """Wrap ``plain``."""
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        """What is asked of a prior beyond ``NoisePrior``."""
        if name == "plain":  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.plain, name)

    @property
    def alphas_cumprod(self) -> Tensor:
        """The prior's noise schedule."""
        return self.plain.alphas_cumprod

    @property
    def denoiser_evaluations(self) -> int:
        """Latents sent through the denoiser so far."""
        return self.plain.denoiser_evaluations

    @denoiser_evaluations.setter
    def denoiser_evaluations(self, value: int) -> None:
        self.plain.denoiser_evaluations = value

    def encode_images(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b c s s"]:
        """Images in 0..1 to scaled latents, differentiable."""
        return self.plain.encode_images(images)

    def decode_latents(self, latents: Float[Tensor, "b c s s"]) -> Float[Tensor, "b h w 3"]:
        """Scaled latents to images in 0..1."""
        return self.plain.decode_latents(latents)

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts to text embeddings."""
        return self.plain.encode_prompt(prompts)

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts, where an empty one means no condition."""
        return self.plain.encode_negative(prompts)

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The denoiser's output in its own parametrisation."""
        return self.plain.predict_output(latents, t, condition)

    def predict_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """Epsilon of this prior's own output."""
        return self.to_noise(self.predict_output(latents, t, condition), latents, t)

    def to_noise(self, output: Tensor, latents: Tensor, t: Int[Tensor, " b"]) -> Tensor:
        """Epsilon from the denoiser's output."""
        return self.plain.to_noise(output, latents, t)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Epsilon after classifier-free guidance."""
        return self.plain.guided_noise(latents, t, cond, uncond, guidance_scale, rescale=rescale)

    def predict_x0(
        self, latents: Float[Tensor, "b c s s"], t: Int[Tensor, " b"], noise_pred: Tensor
    ) -> Float[Tensor, "b c s s"]:
        """Clean latents that the noise prediction implies."""
        return self.plain.predict_x0(latents, t, noise_pred)


class ModifiedPrior(WrappedPrior):
    """A prior with a tool switched on."""

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """What ``rows`` latents are told in the place of ``condition``.

        Args:
            condition: one row, or ``rows``.
            rows: latents of the call.
            is_cond: False for the unconditional part of guidance.
        """
        raise NotImplementedError

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The denoiser's output; every row counts as conditional."""
        told = self.modify(as_condition(condition), len(latents), is_cond=True)
        return self.plain.predict_output(latents, t, told)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """The inner prior's own guidance of the modified conditions."""
        rows = len(latents)
        told = self.modify(as_condition(cond), rows, is_cond=True)
        untold = self.modify(as_condition(uncond), rows, is_cond=False)
        return self.plain.guided_noise(latents, t, told, untold, guidance_scale, rescale=rescale)
