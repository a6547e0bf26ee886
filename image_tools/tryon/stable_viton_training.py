"""Training of StableVITON (arXiv 2312.01725, sections 3.2 and 3.3) beside a frozen denoiser.

    L = || f(z_t; t, token, person, garment) - target ||^2 + 0.001 attention total variation

over the spatial encoder, the warping blocks, the projection of the context token and the token for
nothing. Batch k depends on its number and the generator alone, so that a killed training goes on
bit for bit. What is written are folders: ``encoder``, ``warps``, ``head`` and ``mapper``.

Deviation: the garment's token is dropped row by row, where the released code drops whole batches.

    train_stable_viton(denoiser, parts, batches, StableVitonTrainingConfig(), folder, identity="")
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult
from image_tools.personalization.loop import LoopHooks
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.samples import TryOnBatches
from image_tools.tryon.stable_viton import MODEL, StableVitonParts, viton_channels
from image_tools.tryon.stable_viton_augment import varied
from image_tools.tryon.stable_viton_configs import StableVitonTrainingConfig
from image_tools.tryon.stable_viton_losses import attention_variation, watching
from image_tools.tryon.stable_viton_nets import WarpedUnet
from image_tools.tryon.training import draw_latents, draw_rows, train_modules, write_modules

__all__ = ["StableVitonLoss", "train_stable_viton"]


class StableVitonLoss:
    """Loss of batch number k."""

    def __init__(
        self,
        denoiser: TryOnDenoiser,
        parts: StableVitonParts,
        batches: TryOnBatches,
        config: StableVitonTrainingConfig,
    ) -> None:
        """Train what the denoiser is made of."""
        self.denoiser, self.parts = denoiser, parts
        self.batches, self.config = batches, config

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch and, weighted, the variation of its attention."""
        denoiser, config = self.denoiser, self.config
        sample = varied(self.batches(batch, generator), generator, config.augmentation)
        sample = sample.to(denoiser.device)
        is_dropped = draw_rows(len(sample), config.dropout, generator).to(denoiser.device)
        with torch.no_grad():
            latents = draw_latents(denoiser, sample.person, generator)
            channels = viton_channels(denoiser, sample)
        garment = sample.only_garment(model=MODEL).sized(sample.size)
        told = TextEmbedding(self.parts.context(garment))
        nothing = self.parts.head.nothing(len(sample)).to(told.tokens)
        text = told.lerp(TextEmbedding(nothing), is_dropped)
        noisy = draw_noisy(denoiser, latents, generator)
        blocks = config.atv_blocks if config.atv_weight else ()
        with watching(denoiser.unet.warps, blocks) as seen:
            condition = Condition(text, additions=(channels,))
            loss = denoising_errors(denoiser, noisy, condition).mean()
        if seen:
            worn = sample.need("worn_mask", model=f"{MODEL}'s loss on attention")
            terms = [attention_variation(one.places(), worn) for one in seen.values()]
            loss = loss + config.atv_weight * torch.stack(terms).mean()
        return loss


def train_stable_viton(
    denoiser: TryOnDenoiser,
    parts: StableVitonParts,
    batches: TryOnBatches,
    config: StableVitonTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train StableVITON; calling again with the same folder goes on.

    Args:
        denoiser: whose network is a ``WarpedUnet``; float32. Encoder and warping blocks are trained
            in place, and frozen at the end.
        parts: what makes the context token; its head is trained, too.
        batches: people who wear their garments, with body parts and ``worn_mask``.
        config: settings.
        folder: the training's own.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or a network is not float32.
    """
    net: WarpedUnet = denoiser.unet
    trained = {"encoder": net.encoder, "warps": net.warps, "head": parts.head}
    trained |= {"mapper": parts.mapper} if config.trains_mapper else {}
    return train_modules(
        list(trained.values()),
        StableVitonLoss(denoiser, parts, batches, config),
        config,
        folder,
        write=partial(write_modules, {**trained, "mapper": parts.mapper}),
        prior=denoiser,
        identity=identity,
        hooks=hooks,
    )
