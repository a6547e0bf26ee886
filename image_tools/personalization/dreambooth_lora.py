"""DreamBooth with a LoRA: the loss of ``dreambooth``, low-rank deltas instead of a new denoiser.

The prior is left as it was found; what was learned is in files that stock diffusers loads:
``lora/step-000100/pytorch_lora_weights.safetensors`` at the checkpoint steps and
``pytorch_lora_weights.safetensors`` at the end.

    result = train_dreambooth_lora(prior, subject, None, DreamBoothLoraConfig(), folder)
    pipeline.load_lora_weights(result.files[-1])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.lora_files import LORA_WEIGHT_NAME, write_lora
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.dreambooth import SubjectLoss, TrainingResult, identity_of
from image_tools.personalization.dreambooth_configs import DreamBoothLoraConfig
from image_tools.personalization.loop import LoopHooks, TuningLoop, batch_generator
from image_tools.personalization.trainable_lora import TrainableLora

__all__ = [
    "LORA_NAME",
    "run_lora_training",
    "start_digest",
    "train_dreambooth_lora",
    "trained_lora",
]

LORA_NAME = "subject"
# Number of the generator that draws the deltas; far from those of batches.
DRAW = 1 << 41


def train_dreambooth_lora(
    prior: DiffusionPrior,
    subject: CaptionedImages,
    class_set: CaptionedImages | None,
    config: DreamBoothLoraConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
    start: LoraFile | None = None,
) -> TrainingResult:
    """Train a LoRA; calling again with the same folder goes on.

    Args:
        prior: left as it is found; in hooks it acts with what is learned so far.
        subject: the photos, with captions that name the subject; several subjects may be mixed.
        class_set: images of the class from the untrained prior, or None.
        config: settings.
        folder: the training's own.
        hooks: progress, samples, a stop request.
        start: a LoRA to go on from, for instance that of a partial training.

    Raises:
        StudioError: the folder holds another training, or no layer fits the config.
    """
    identity = identity_of(config, prior.fingerprint, [subject, class_set], start_digest(start))
    with trained_lora(prior, config, start) as lora:
        loss = SubjectLoss(
            prior,
            subject,
            class_set,
            config.batch,
            class_weight=config.class_images.weight,
            is_text_trained=lora.changes_text,
            seed=config.loop.seed,
        )
        groups = lora.groups(text_learning_rate=config.text_learning_rate)
        loop = TuningLoop(
            groups,
            config.loop,
            folder,
            device=prior.device,
            identity=identity,
            frozen_dtype=prior.dtype,
        )
        return run_lora_training(lora, loop, loss, hooks)


@contextmanager
def trained_lora(
    prior: DiffusionPrior, config: DreamBoothLoraConfig, start: LoraFile | None
) -> Iterator[TrainableLora]:
    """A LoRA on the prior for the time of its training."""
    generator = batch_generator(config.loop.seed, DRAW)
    lora = TrainableLora(prior, config.lora, name=LORA_NAME, generator=generator, start=start)
    try:
        with gradient_checkpointing([prior.unet], config.batch.checkpointing):
            yield lora
    finally:
        lora.detach()


def run_lora_training(
    lora: TrainableLora,
    loop: TuningLoop,
    loss: Callable[[int, torch.Generator], Tensor],
    hooks: LoopHooks | None,
) -> TrainingResult:
    """Run the loop and write LoRA files at its checkpoints and at its end."""
    hooks = hooks or LoopHooks()

    def checkpoint(step: int) -> None:
        write_lora(_step_file(loop.folder, step), lora.file(), layout="diffusers")
        hooks.checkpoint(step)

    finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    files = [_step_file(loop.folder, step) for step in loop.config.checkpoint_steps]
    files = [path for path in files if path.exists()]
    if finished:
        files.append(loop.folder / LORA_WEIGHT_NAME)
        write_lora(files[-1], lora.file(), layout="diffusers")
    return TrainingResult(finished, loop.step, tuple(files))


def _step_file(folder: Path, step: int) -> Path:
    return folder / "lora" / f"step-{step:06d}" / LORA_WEIGHT_NAME


def start_digest(start: LoraFile | None) -> dict[str, str]:
    """What tells one start from another."""
    if start is None:
        return {}
    import hashlib

    digest = hashlib.sha256()
    for section, name, delta in start.deltas():
        digest.update(f"{section}\0{name}\0{delta.alpha}\0".encode())
        for tensor in (delta.down, delta.up):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return {"start": digest.hexdigest()[:32]}
