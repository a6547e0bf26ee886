"""The two trainings of DreamBooth-to-3D, whatever their kind: full, LoRA or DCO.

The first learns the photos and keeps the partial and the full weights. The second goes on from one
of them with photos and pseudo views together, whose captions say from where each view is seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from image_tools.diffusion.lora_files import LoraFile, read_lora, write_lora
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.captions import SubjectCaptions
from image_tools.personalization.dco import train_dco
from image_tools.personalization.dreambooth import TrainingResult, train_dreambooth
from image_tools.personalization.dreambooth_configs import (
    DcoConfig,
    DreamBoothConfig,
    DreamBoothLoraConfig,
)
from image_tools.personalization.dreambooth_lora import train_dreambooth_lora
from image_tools.personalization.extraction import ExtractionReport, extract_deltas
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.personalized import attach_subjects
from image_tools.personalization.personalized_configs import SubjectConfig
from image_tools.personalization.textual_inversion import train_textual_inversion
from image_tools.personalization.textual_inversion_configs import TextualInversionConfig
from studio.subject.configs import DreamBooth3DConfig, PlaceholderTokenConfig, TrainingConfig
from studio.subject.folder import SubjectFolder

__all__ = [
    "SubjectSet",
    "drop_state",
    "first_training",
    "keep_lora",
    "learn_word",
    "second_training",
    "training_rows",
]

EXTRACTED_RANK = 32
"""Rank of the LoRA that is cut out of a whole trained denoiser."""
UNET = "unet."


@dataclass(frozen=True)
class SubjectSet:
    """What a training sees."""

    images: Float[Tensor, "n h w 3"]
    captions: SubjectCaptions
    class_set: CaptionedImages | None = None
    """Prior preservation; not for DCO, which compares with the prior itself."""


def training_rows(config: TrainingConfig, steps: int) -> int:
    """Rows that a training of ``steps`` steps sends through the denoiser."""
    is_double = isinstance(config, DcoConfig) or config.class_images.count > 0
    return steps * config.loop.accumulate * config.batch.size * (2 if is_double else 1)


def learn_word(
    prior: DiffusionPrior,
    images: Float[Tensor, "n h w 3"],
    subject: DreamBooth3DConfig,
    token: PlaceholderTokenConfig,
    folder: SubjectFolder,
    *,
    seed: int,
    hooks: LoopHooks,
) -> bool:
    """Learn a placeholder's vectors; False if it was asked to stop."""
    config = TextualInversionConfig(
        token=token.word,
        init_word=subject.word,
        vectors=token.vectors,
        loop=replace(token.loop, seed=token.loop.seed + seed),
    )
    state = folder.training("word_training")
    result = train_textual_inversion(prior, images, config, state, hooks=hooks)
    if result.finished:
        _keep(result.files[-1], folder.word)
    return result.finished


def first_training(
    prior: DiffusionPrior,
    data: SubjectSet,
    subject: DreamBooth3DConfig,
    folder: SubjectFolder,
    *,
    seed: int,
    hooks: LoopHooks,
) -> bool:
    """Learn the photos and keep the partial and the full weights.

    Args:
        prior: as it comes from its files, or with the placeholder; a full training changes it.
        data: photos and class images.
        subject: settings.
        folder: gets the weights.
        seed: added to the training's own.
        hooks: progress and a stop request; a stopped training goes on when called again.

    Returns:
        False if it was asked to stop.
    """
    config, partial = subject.training, subject.partial_steps
    loop = replace(config.loop, checkpoint_steps=(partial,), seed=config.loop.seed + seed)
    state = folder.training("training")
    result = _train(prior, replace(config, loop=loop), data, state, hooks=hooks)
    if result.finished:
        is_lora = not isinstance(config, DreamBoothConfig)
        _keep(result.files[0], folder.weights("partial", is_lora=is_lora))
        _keep(result.files[-1], folder.weights("full", is_lora=is_lora))
    return result.finished


def keep_lora(
    subject: DreamBooth3DConfig, folder: SubjectFolder, *, fresh: Callable[[], DiffusionPrior]
) -> dict[str, float] | None:
    """Keep the full weights as a LoRA of the denoiser, whatever was trained.

    Args:
        subject: settings.
        folder: holds the weights, gets the LoRA.
        fresh: loads the prior as it was before the training.

    Returns:
        How much of a whole denoiser's change the LoRA holds; None if a LoRA was trained.
    """
    is_lora = not isinstance(subject.training, DreamBoothConfig)
    full = folder.weights("full", is_lora=is_lora)
    if is_lora:
        _keep(full, folder.lora)
        return None
    lora, report = _extracted(fresh(), full)
    write_lora(folder.lora, lora, layout="diffusers")
    return {
        "rank": EXTRACTED_RANK,
        "layers": report.layers,
        "kept": round(report.kept, 4),
        "left_out_share": round(report.left_out_share, 4),
    }


def second_training(
    prior: DiffusionPrior,
    data: SubjectSet,
    subject: DreamBooth3DConfig,
    folder: SubjectFolder,
    *,
    seed: int,
    hooks: LoopHooks,
) -> bool:
    """Train on from the partial (or full) weights, on photos and pseudo views.

    Args: as of ``first_training``; ``data`` holds photos and views.

    Returns:
        False if it was asked to stop.
    """
    second = subject.second_training
    loop = replace(second.loop, seed=second.loop.seed + seed)
    config = replace(subject.training, loop=loop)
    is_lora = not isinstance(config, DreamBoothConfig)
    state = folder.training("second_training")
    start = folder.weights(second.start, is_lora=is_lora)
    result = _train(prior, config, data, state, hooks=hooks, start=start)
    if result.finished:
        _keep(result.files[-1], folder.weights("multiview", is_lora=is_lora))
    return result.finished


def _train(
    prior: DiffusionPrior,
    config: TrainingConfig,
    data: SubjectSet,
    folder: Path,
    *,
    hooks: LoopHooks,
    start: Path | None = None,
) -> TrainingResult:
    """A training of any kind, from the prior or from weights of the same kind."""
    is_lora = not isinstance(config, DreamBoothConfig)
    lora = read_lora(start) if is_lora and start is not None else None
    if isinstance(config, DcoConfig):
        return train_dco(prior, data.images, data.captions, config, folder, hooks=hooks, start=lora)
    photos = CaptionedImages(data.images, data.captions.prompts)
    if isinstance(config, DreamBoothLoraConfig):
        return train_dreambooth_lora(
            prior, photos, data.class_set, config, folder, hooks=hooks, start=lora
        )
    if start is not None:
        attach_subjects(prior, [SubjectConfig(weights=str(start))])
    return train_dreambooth(prior, photos, data.class_set, config, folder, hooks=hooks)


def _extracted(prior: DiffusionPrior, weights: Path) -> tuple[LoraFile, ExtractionReport]:
    """The denoiser's part of trained weights as a LoRA of the prior, and what it leaves out."""
    tuned = {
        name.removeprefix(UNET): tensor
        for name, tensor in load_file(weights).items()
        if name.startswith(UNET)
    }
    deltas, report = extract_deltas(prior.unet.state_dict(), tuned, rank=EXTRACTED_RANK)
    return LoraFile({"unet": deltas}), report


def _keep(source: Path, target: Path) -> None:
    """Copy a result to its place, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, partial)
    partial.replace(target)


def drop_state(folder: Path) -> None:
    """Remove what only an unfinished training needs: several times the size of its weights."""
    for path in folder.glob("*"):
        if path.name == "log.csv":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
