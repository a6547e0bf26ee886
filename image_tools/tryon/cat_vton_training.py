"""Training of CatVTON (arXiv 2407.15886, section 3.3): self-attention alone, on both halves.

    L = E || f([z_t(person); z_t(garment)]; t, mask, person, garment) - target ||^2

What is dropped for guidance is the garment beside the noise, never its noisy half. Noise and target
are moved by the model's own error before (DREAM, ``dream``), which costs one more pass.

    result = train_cat_vton(tool, batches, CatVtonTrainingConfig(), folder, identity="VITON-HD")
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.conditions import Condition
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult
from image_tools.personalization.loop import LoopHooks
from image_tools.tryon.cat_vton import MODEL, CatVtonPrior, above
from image_tools.tryon.cat_vton_configs import CatVtonTrainingConfig
from image_tools.tryon.cat_vton_weights import self_attention, write_attention
from image_tools.tryon.dream import rectified
from image_tools.tryon.pictures import fitted
from image_tools.tryon.samples import TryOnBatches
from image_tools.tryon.training import draw_latents, draw_rows, train_modules

__all__ = ["CatVtonLoss", "train_cat_vton"]


class CatVtonLoss:
    """Loss of batch number k."""

    def __init__(
        self,
        tool: CatVtonPrior,
        batches: TryOnBatches,
        *,
        dropout: float,
        dream_power: float | None = None,
    ) -> None:
        """Take the tool's denoiser as it is.

        Args:
            tool: the denoiser that draws both halves.
            batches: people in their garments.
            dropout: share of samples whose garment is not shown.
            dream_power: p of DREAM; None for the plain loss.
        """
        self.tool, self.batches = tool, batches
        self.dropout, self.dream_power = dropout, dream_power

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        denoiser, sample = self.tool.denoiser, self.batches(batch, generator)
        is_dropped = draw_rows(len(sample), self.dropout, generator).tolist()
        garment = fitted(sample.only_garment(model=MODEL).images, denoiser.image_hw)
        with torch.no_grad():
            halves = (draw_latents(denoiser, each, generator) for each in (sample.person, garment))
            latents = above(*halves)
            text = denoiser.encode_negative([""])
        self.tool.dress(sample)
        noisy = draw_noisy(denoiser, latents, generator)
        roles = tuple("uncond" if drops else "cond" for drops in is_dropped)
        condition = Condition(text.expand(len(sample)), roles=roles)
        if self.dream_power is not None:
            noisy = rectified(self.tool, denoiser, noisy, condition, power=self.dream_power)
        return denoising_errors(self.tool, noisy, condition).mean()


def train_cat_vton(
    tool: CatVtonPrior,
    batches: TryOnBatches,
    config: CatVtonTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train the self-attention; calling again with the same folder goes on.

    Args:
        tool: whose denoiser's self-attention is trained in place; float32.
        batches: people in their garments.
        config: settings.
        folder: the training's own. The result is ``attention/model.safetensors`` in it.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the denoiser is not float32.
    """
    unet = tool.denoiser.unet
    return train_modules(
        self_attention(unet),
        CatVtonLoss(tool, batches, dropout=config.dropout, dream_power=config.dream_power),
        config,
        folder,
        write=lambda place: [write_attention(unet, place / "attention")],
        prior=tool.denoiser,
        identity=identity,
        recomputed=[unet],
        hooks=hooks,
    )
