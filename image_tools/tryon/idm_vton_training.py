"""Training of IDM-VTON (arXiv 2403.05139, sections 3.3 and 3.4), whole or for one garment.

    L = E || f(z_t; t, person, garment, words) - target ||^2

over TryonNet and the image prompt; GarmentNet and CLIP are frozen. TryonNet starts as SDXL's
inpainting denoiser, whose nine channels are the first of its thirteen. What is written is the
folder ``unet`` of the public weights.

The customization makes TryonNet know one garment, seen on a person: low-rank deltas of the
attention of its decoder, for 100 steps. If there is no product picture, cut the garment out of the
photograph onto white (``cut_out``). What is written is a LoRA that stock diffusers loads.

The released trainer clips gradients of nothing, never shuffles, and counts its steps twice; this
one does not.

    unet = widen_conv_in(inpainting_unet, 13)
    train_idm_vton(tool, batches, IdmTrainingConfig(), folder, identity="VITON-HD")
    customize_idm_vton(tool, sample, IdmCustomizationConfig(), folder)
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.attention import attention_operations
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import CaptionedImages, encode_text
from image_tools.personalization.denoising import NoisyBatch, denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.dreambooth_lora import run_lora_training
from image_tools.personalization.loop import LoopHooks, TuningLoop, batch_generator
from image_tools.personalization.trainable_lora import TrainableLora
from image_tools.tryon.augment import augmented
from image_tools.tryon.idm_vton import MODEL, IdmVtonPrior, worn_prompts
from image_tools.tryon.idm_vton_configs import (
    AugmentationConfig,
    IdmCustomizationConfig,
    IdmTrainingConfig,
)
from image_tools.tryon.idm_vton_weights import write_tryon_net
from image_tools.tryon.leffa import LEAST_SHARE, ReferenceMatches, flow_loss
from image_tools.tryon.pictures import fitted
from image_tools.tryon.samples import TryOnBatches, TryOnSample
from image_tools.tryon.training import draw_latents, draw_rows, train_modules

__all__ = ["IdmVtonLoss", "customize_idm_vton", "train_idm_vton"]

LORA_NAME = "garment"
# Number of the generator that draws the deltas; far from those of batches.
DRAW = 1 << 41
UNUSED_RATE = 0.0  # no text encoder has deltas


class IdmVtonLoss:
    """Loss of batch number k."""

    def __init__(
        self,
        tool: IdmVtonPrior,
        batches: TryOnBatches,
        *,
        augmentation: AugmentationConfig | None = None,
        dropout: float = 0.0,
        flow_weight: float = 0.0,
    ) -> None:
        """Take the tool's networks as they are.

        Args:
            tool: TryonNet and all that it looks at.
            batches: people in their garments.
            augmentation: how samples are varied; None for not at all.
            dropout: share of samples without garment and text.
            flow_weight: of Leffa's loss.
        """
        self.tool, self.batches = tool, batches
        self.augmentation, self.dropout, self.flow_weight = augmentation, dropout, flow_weight

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        denoiser, sample = self.tool.denoiser, self.batches(batch, generator)
        if self.augmentation is not None:
            sample = augmented(sample, generator, self.augmentation)
        is_dropped = draw_rows(len(sample), self.dropout, generator).tolist()
        prompts = worn_prompts(sample.only_garment(model=MODEL))
        with torch.no_grad():
            latents = draw_latents(denoiser, sample.person, generator)
            told = zip(is_dropped, prompts, strict=True)
            text = encode_text(denoiser, ["" if drops else prompt for drops, prompt in told])
        self.tool.show(*self.tool.look(sample))
        noisy = draw_noisy(denoiser, latents, generator)
        roles = tuple("uncond" if drops else "cond" for drops in is_dropped)
        condition = Condition(text, roles=roles)
        if self.flow_weight == 0.0:
            return denoising_errors(self.tool, noisy, condition).mean()
        return self._with_flow(noisy, condition, sample.to(denoiser.device), is_dropped)

    def _with_flow(
        self, noisy: NoisyBatch, condition: Condition, sample: TryOnSample, is_dropped: list[bool]
    ) -> Float[Tensor, ""]:
        """The error and Leffa's loss of rows that see their garment through little noise."""
        denoiser = self.tool.denoiser
        worn = sample.need("worn_mask", model="Leffa's loss")
        matches = ReferenceMatches(least_rows=max(sample.size[0] // LEAST_SHARE, 1))
        with attention_operations(denoiser.unet, [matches]):
            errors = denoising_errors(self.tool, noisy, condition)
        sees = ~torch.tensor(is_dropped, device=noisy.t.device)
        counts = sees & (noisy.t < denoiser.num_train_timesteps // 2)
        garment = fitted(sample.only_garment(model=MODEL).images, sample.size)
        flow = flow_loss(matches, sample.person, garment, worn, counts)
        return errors.mean() + self.flow_weight * flow


def train_idm_vton(
    tool: IdmVtonPrior,
    batches: TryOnBatches,
    config: IdmTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train TryonNet and the image prompt; calling again with the same folder goes on.

    Args:
        tool: whose denoiser and adapter are trained in place; float32.
        batches: people in their garments.
        config: settings.
        folder: the training's own. The result is its folder ``unet``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or a network is not float32.
    """
    unet, adapter = tool.denoiser.unet, tool.prompted.adapter

    def write(place: Path) -> list[Path]:
        write_tryon_net(unet, adapter, place / "unet")
        return [place / "unet"]

    return train_modules(
        [unet, adapter],
        IdmVtonLoss(
            tool,
            batches,
            augmentation=config.augmentation,
            dropout=config.dropout,
            flow_weight=config.flow_weight,
        ),
        config,
        folder,
        write=write,
        prior=tool.denoiser,
        identity=identity,
        recomputed=[unet],
        hooks=hooks,
    )


def customize_idm_vton(
    tool: IdmVtonPrior,
    sample: TryOnSample,
    config: IdmCustomizationConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Make TryonNet know a garment; calling again with the same folder goes on.

    Args:
        tool: left as it is found.
        sample: people who wear the garment, its product picture, and masks of where it is.
        config: settings.
        folder: the training's own. The result is a LoRA file.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or no layer fits the settings.
    """
    denoiser, garment = tool.denoiser, sample.only_garment(model=MODEL)
    sets = [CaptionedImages(images, garment.captions) for images in (sample.person, garment.images)]
    identity = identity_of(config, denoiser.fingerprint, sets)
    lora = TrainableLora(
        denoiser,
        config.lora,
        name=LORA_NAME,
        generator=batch_generator(config.loop.seed, DRAW),
    )
    try:
        loop = TuningLoop(
            lora.groups(text_learning_rate=UNUSED_RATE),
            config.loop,
            folder,
            device=denoiser.device,
            frozen_dtype=denoiser.dtype,
            identity=identity,
        )
        loss = IdmVtonLoss(tool, lambda *_: sample)
        with gradient_checkpointing([denoiser.unet], config.checkpointing):
            return run_lora_training(lora, loop, loss, hooks)
    finally:
        lora.detach()
