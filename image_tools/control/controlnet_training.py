"""Training of ControlNets (arXiv 2302.05543, section 3.3).

    L = E || f(z_t; t, y, c) - target ||^2    (Eq. 5, in the prior's own parametrisation)

over the ControlNet alone: the denoiser is frozen, and its decoder passes the gradient on. The
ControlNet starts as a copy of the denoiser's encoder whose last convolutions are zero, so the first
loss is the plain prior's. Condition images go in as they are used, in 0..1.

Where batches come from is the caller's: batch k depends on its number and the generator alone, so
that a training that was killed goes on bit for bit. What is written is a stock diffusers folder.

    controlnet = new_controlnet(prior)
    result = train_controlnet(prior, controlnet, batches, config, folder, identity="toybox depth")
    controlnet = read_controlnet(ControlConfig(weights=str(result.files[-1])))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.training_configs import ControlTrainingConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing, write_module
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy, min_snr_weights
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from renderers.errors import ShapeError

if TYPE_CHECKING:
    from diffusers import ControlNetModel

__all__ = [
    "ControlBatch",
    "ControlBatches",
    "ControlNetLoss",
    "new_controlnet",
    "train_controlnet",
]

# The stock widths of the convolutions that a condition image goes through, one halving each.
HINT_WIDTHS = (16, 32, 96, 256)
FOLDER_NAME = "controlnet"


@dataclass(frozen=True)
class ControlBatch:
    """Images, what they show, and their condition images."""

    images: Float[Tensor, "b h w 3"]
    captions: tuple[str, ...]
    conditions: Float[Tensor, "b h w k"]
    """In 0..1, at the prior's image size."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = (len(self.images), len(self.captions), len(self.conditions))
        if len(set(sizes)) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} images, {sizes[1]} captions and {sizes[2]} conditions. "
                "Give one of each for every sample."
            )


ControlBatches = Callable[[int, torch.Generator], ControlBatch]
"""Batch number k; everything random in it comes from the generator."""


def new_controlnet(prior: DiffusionPrior, *, channels: int = 3) -> ControlNetModel:
    """An untrained ControlNet for a prior: a copy of its encoder that changes nothing yet.

    Args:
        prior: the model to be controlled.
        channels: of the condition images.
    """
    from diffusers import ControlNetModel

    halvings = (prior.image_size // prior.latent_size).bit_length() - 1
    if halvings >= len(HINT_WIDTHS):
        raise ShapeError(
            f"The prior's images are {2**halvings} times as large as its latents - expected at "
            f"most {2 ** (len(HINT_WIDTHS) - 1)} times. Use another prior."
        )
    controlnet = ControlNetModel.from_unet(
        prior.unet,
        conditioning_embedding_out_channels=HINT_WIDTHS[: halvings + 1],
        conditioning_channels=channels,
    )
    return controlnet.to(prior.device)


class ControlNetLoss:
    """Loss of batch number k for a ControlNet beside a prior."""

    def __init__(
        self,
        prior: DiffusionPrior,
        controlnet: nn.Module,
        batches: ControlBatches,
        config: ControlTrainingConfig,
    ) -> None:
        """Put the ControlNet beside the prior."""
        self.prior, self.config, self.batches = prior, config, batches
        channels = controlnet.config.conditioning_channels
        blank = torch.zeros(1, prior.image_size, prior.image_size, channels, device=prior.device)
        self.controlled = ControlledPrior(prior, [Control(controlnet, blank)])

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        sample = self.batches(batch, generator)
        self.controlled.show([sample.conditions.to(self.prior.device)])
        is_empty = torch.rand(len(sample.captions), generator=generator) < self.config.empty_prompts
        prompts = [
            "" if empty else caption
            for empty, caption in zip(is_empty.tolist(), sample.captions, strict=True)
        ]
        with torch.no_grad():
            mean, std = self.prior.encode_posterior(sample.images.to(self.prior.device))
            latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
            text = encode_text(self.prior, prompts)
        noisy = draw_noisy(self.prior, latents, generator)
        weights = min_snr_weights(self.prior, noisy.t, self.config.min_snr_gamma)
        return (weights * denoising_errors(self.controlled, noisy, text)).mean()


def train_controlnet(
    prior: DiffusionPrior,
    controlnet: ControlNetModel,
    batches: ControlBatches,
    config: ControlTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train a ControlNet; calling again with the same folder goes on.

    Args:
        prior: left as it is found.
        controlnet: as of ``new_controlnet``, or one to train further; float32. It is trained in
            place, and frozen at the end.
        batches: images, captions and conditions.
        config: settings.
        folder: the training's own. The result is its folder ``controlnet``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the ControlNet is not float32.
        UnsupportedModel: the ControlNet is of another family than the prior.
    """
    hooks = hooks or LoopHooks()
    loss = ControlNetLoss(prior, controlnet, batches, config)
    loop = TuningLoop(
        [ParameterGroup(dict(controlnet.named_parameters()))],
        config.loop,
        folder,
        device=prior.device,
        frozen_dtype=prior.dtype,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
    )

    def checkpoint(step: int) -> None:
        write_module(controlnet, _step_folder(folder, step))
        hooks.checkpoint(step)

    with gradient_checkpointing([prior.unet, controlnet], config.checkpointing):
        finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    controlnet.requires_grad_(False)
    files = [_step_folder(folder, step) for step in config.loop.checkpoint_steps]
    files = [path for path in files if path.exists()]
    if finished:
        files.append(folder / FOLDER_NAME)
        write_module(controlnet, files[-1])
    return TrainingResult(finished, loop.step, tuple(files))


def _step_folder(folder: Path, step: int) -> Path:
    return folder / f"{FOLDER_NAME}s" / f"step-{step:06d}"
