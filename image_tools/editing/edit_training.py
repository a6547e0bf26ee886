"""Training of InstructPix2Pix's denoiser (arXiv 2211.09800, section 3.2).

    L = E || f([z_t, E(c_I)]; t, c_T) - target ||^2    (Eq. 2, in the prior's own parametrisation)

The denoiser starts as the prior's with four more input channels, whose weights are zero, and is
trained whole. Instruction, image and both are dropped in 5 % of the samples each, by one draw u:
the instruction where u < 2p, the image where p <= u < 3p. Averaged weights are the result.

Where batches come from is the caller's: batch k depends on its number and the generator alone, so
that a training that was killed goes on bit for bit. What is written is a stock diffusers folder.

    unet = new_edit_unet(prior)
    result = train_edit_unet(prior, unet, batches, config, folder, identity="toybox edits")
    prior = InstructPix2PixPrior(prior, read_edit_unet(result.files[-1]), images=images)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import (
    WeightAverage,
    gradient_checkpointing,
    write_module,
)
from image_tools.editing.edit_training_configs import EditTrainingConfig
from image_tools.editing.instruct_pix2pix import (
    ImageAddition,
    InstructPix2PixPrior,
    inflate_conv_in,
)
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import NoisyBatch, denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from renderers.errors import ShapeError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = [
    "EditBatch",
    "EditBatches",
    "EditDenoiser",
    "EditLoss",
    "draw_dropped",
    "new_edit_unet",
    "train_edit_unet",
]

FOLDER_NAME = "unet"


@dataclass(frozen=True)
class EditBatch:
    """Images before and after an edit, and what was asked for."""

    sources: Float[Tensor, "b h w 3"]
    targets: Float[Tensor, "b h w 3"]
    instructions: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = (len(self.sources), len(self.targets), len(self.instructions))
        if len(set(sizes)) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} sources, {sizes[1]} targets and {sizes[2]} instructions. "
                "Give one of each for every pair."
            )


EditBatches = Callable[[int, torch.Generator], EditBatch]
"""Batch number k; everything random in it comes from the generator."""


def new_edit_unet(prior: DiffusionPrior) -> UNet2DConditionModel:
    """An untrained edit model for a prior: it ignores the image and predicts as the prior does."""
    return inflate_conv_in(prior.unet, prior.latent_channels)


def draw_dropped(
    rows: int, dropout: float, *, generator: torch.Generator
) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Which rows lose their instruction, and which their image."""
    u = torch.rand(rows, generator=generator)
    return u < 2.0 * dropout, (u >= dropout) & (u < 3.0 * dropout)


class EditDenoiser:
    """An edit model in training beside its prior, which gives VAE, text encoder and schedule."""

    def __init__(self, prior: DiffusionPrior, unet: nn.Module) -> None:
        """Put the edit model beside the prior.

        Raises:
            UnsupportedModel: it does not take an image's latents.
        """
        self._editor = InstructPix2PixPrior(prior, unet).editor

    def error(
        self,
        noisy: NoisyBatch,
        text: TextEmbedding,
        sources: Float[Tensor, "b c s s"],
        drops_image: Bool[Tensor, " b"],
    ) -> Float[Tensor, ""]:
        """Mean squared error of a batch.

        Args:
            noisy: of the edited images' latents.
            text: instructions, empty ones where they are dropped.
            sources: latents of the images before, scaled as the prior's are.
            drops_image: rows that see the null image.
        """
        keeps = (~drops_image).to(sources).reshape(-1, 1, 1, 1)
        shown = ImageAddition(self._editor.unscaled(sources) * keeps)
        return denoising_errors(self._editor, noisy, Condition(text, additions=(shown,))).mean()


class EditLoss:
    """Loss of batch number k."""

    def __init__(
        self,
        prior: DiffusionPrior,
        unet: nn.Module,
        batches: EditBatches,
        config: EditTrainingConfig,
    ) -> None:
        """Put the edit model beside the prior."""
        self.prior, self.config, self.batches = prior, config, batches
        self.denoiser = EditDenoiser(prior, unet)

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        prior, config = self.prior, self.config
        pairs = self.batches(batch, generator)
        rows = len(pairs.instructions)
        is_mirrored = torch.rand(rows, generator=generator) < config.mirrored
        no_text, no_image = draw_dropped(rows, config.dropout, generator=generator)
        prompts = [
            "" if dropped else said
            for dropped, said in zip(no_text.tolist(), pairs.instructions, strict=True)
        ]
        targets, sources = (_mirrored(x, is_mirrored) for x in (pairs.targets, pairs.sources))
        with torch.no_grad():
            mean, std = prior.encode_posterior(targets.to(prior.device))
            latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
            shown = prior.encode_images(sources.to(prior.device))
            text = encode_text(prior, prompts)
        noisy = draw_noisy(prior, latents, generator)
        return self.denoiser.error(noisy, text, shown, no_image.to(prior.device))


def train_edit_unet(
    prior: DiffusionPrior,
    unet: UNet2DConditionModel,
    batches: EditBatches,
    config: EditTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train an edit model; calling again with the same folder goes on.

    Args:
        prior: left as it is found.
        unet: as of ``new_edit_unet``, or one to train further; float32. It is trained in place, and
            at the end it is frozen and has the averaged weights.
        batches: pairs with their instructions.
        config: settings.
        folder: the training's own. The result is its folder ``unet``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the denoiser is not float32.
        UnsupportedModel: it does not take an image's latents.
    """
    hooks = hooks or LoopHooks()
    loss = EditLoss(prior, unet, batches, config)
    weights = dict(unet.named_parameters())
    average = WeightAverage(weights, config.average_decay)
    averages = {f"average.{name}": p for name, p in average.parameters.items()}
    loop = TuningLoop(
        [ParameterGroup(weights), ParameterGroup(averages)],
        config.loop,
        folder,
        device=prior.device,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
    )

    def after_step(step: int) -> None:
        average.update(step)
        hooks.after_step(step)

    with gradient_checkpointing([unet], config.checkpointing):
        finished = loop.run(loss, replace(hooks, after_step=after_step))
    unet.requires_grad_(False)
    if not finished:
        return TrainingResult(False, loop.step, ())
    average.apply()
    write_module(unet, folder / FOLDER_NAME)
    return TrainingResult(True, loop.step, (folder / FOLDER_NAME,))


def _mirrored(images: Float[Tensor, "b h w 3"], chosen: Bool[Tensor, " b"]) -> Tensor:
    """Images whose chosen ones are flipped left to right."""
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(2), images)
