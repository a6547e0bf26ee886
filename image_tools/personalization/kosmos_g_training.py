"""Training of KOSMOS-G (arXiv 2310.02992): stage 2 aligns by words, stage 3 tunes by pictures.

    align   L = || M(s) - CLIP(y) ||^2 + w (q / T) || N(M(s)) - s ||^2
    tune    L = || f(z_t; t, M(s)) - target ||^2 through the frozen denoiser

s are the language model's states of T tokens, y the same caption, q the number of text states.
``align`` trains the aligner alone and needs no pictures. ``tune`` trains the language model, its
connector, the last block and norm of its image encoder, and M; a tenth of the rows are told what
the empty prompt says. Stage 1, language modelling on images and text of the web, is left out:
both stages start from a language model.

Deviations: a batch's captions are not of one length, and the authors read back padding too; here a
row counts its own T tokens, so its loss does not depend on the others. Dropout is off, so that a
training that was killed goes on bit for bit.

    result = train_alignment(prior, model, captions, config, folder)
    result = train_instructions(prior, model, batches, config, folder, identity="toybox")
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import encode_text, rows_of_batch
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.kosmos_g import KosmosGModel, check_fits
from image_tools.personalization.kosmos_g_aligner import AlignerTrainer
from image_tools.personalization.kosmos_g_configs import (
    AlignTrainingConfig,
    InstructionTuningConfig,
)
from image_tools.personalization.kosmos_g_prompt import stack_rows
from image_tools.personalization.kosmos_g_weights import write_aligner, write_kosmos_g
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from renderers.errors import ShapeError, StudioError

__all__ = [
    "AlignmentLoss",
    "InstructionBatch",
    "InstructionBatches",
    "InstructionLoss",
    "train_alignment",
    "train_instructions",
    "tuned_parameters",
]

ALIGNER_FOLDER, MODEL_FOLDER = "aligner", "kosmos-g"


@dataclass(frozen=True)
class InstructionBatch:
    """Pictures, and prompts with images that say what they show."""

    targets: Float[Tensor, "b h w 3"]
    """In 0..1."""
    prompts: tuple[str, ...]
    """One for each picture, with ``<i>`` where an image is meant."""
    images: tuple[Float[Tensor, "n s s 3"], ...]
    """For each prompt its images, all of one size; none is [0, s, s, 3]."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = (len(self.targets), len(self.prompts), len(self.images))
        if len(set(sizes)) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} pictures, {sizes[1]} prompts and images for {sizes[2]}. "
                "Give one of each for every sample."
            )


InstructionBatches = Callable[[int, torch.Generator], InstructionBatch]
"""Batch number k; everything random in it comes from the generator."""


class AlignmentLoss:
    """Loss of batch number k of captions."""

    def __init__(
        self,
        prior: DiffusionPrior,
        model: KosmosGModel,
        captions: Sequence[str],
        config: AlignTrainingConfig,
    ) -> None:
        """Hold the captions.

        Raises:
            StudioError: there are no captions, or the model's aligner cannot read back.
            UnsupportedModel: the prior reads other text states.
        """
        if not captions:
            raise StudioError(
                "There are no captions to align by - expected at least one. Give a list of them."
            )
        if not isinstance(model.aligner, AlignerTrainer):
            raise StudioError(
                "The aligner has no half that reads back, which training needs - expected one of "
                "new_aligner, or of a training's own folder."
            )
        check_fits(prior, model)
        self.prior, self.model, self.config = prior, model, config
        self.captions = tuple(captions)

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Both errors of the batch, weighted."""
        size, seed = self.config.batch_size, self.config.loop.seed
        rows = rows_of_batch(len(self.captions), size, seed=seed, batch=batch)
        to_text, back = self.parts([self.captions[row] for row in rows])
        return to_text + self.config.reconstruction * back

    def parts(self, captions: Sequence[str]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Distance to the text encoder's states, and of what is read back, with its q / T."""
        model, aligner = self.model, self.model.aligner
        batch = stack_rows([model.tokens.read(caption, 0) for caption in captions])
        with torch.no_grad():
            wanted = encode_text(self.prior, captions).tokens.to(model.device).float()
            states = model.states(batch, None).float()
        is_token = batch.is_token.to(model.device)
        text_states = aligner(states, is_token)
        if text_states.shape != wanted.shape:
            raise ShapeError(
                f"The aligner makes {tuple(text_states.shape[1:])} text states, the prior's text "
                f"encoder {tuple(wanted.shape[1:])} - expected as many. Set queries and width."
            )
        errors = (aligner.read_back(text_states, is_token) - states).square().mean(dim=-1)
        tokens = is_token.sum(dim=1)
        back = (errors * is_token).sum(dim=1) / tokens * (aligner.settings.queries / tokens)
        return (text_states - wanted).square().mean(), back.mean()


class InstructionLoss:
    """Loss of batch number k of pictures with their prompts."""

    def __init__(
        self,
        prior: DiffusionPrior,
        model: KosmosGModel,
        batches: InstructionBatches,
        config: InstructionTuningConfig,
    ) -> None:
        """Put the model before the prior.

        Raises:
            UnsupportedModel: the prior reads other text states.
        """
        check_fits(prior, model)
        self.prior, self.model, self.batches, self.config = prior, model, batches, config

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch; its gradient goes through the denoiser to the text states."""
        prior, model = self.prior, self.model
        sample = self.batches(batch, generator)
        with torch.no_grad():
            mean, std = prior.encode_posterior(sample.targets.to(prior.device))
            latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        text_states = model.embed(sample.prompts, sample.images)
        is_null = torch.rand(len(text_states), generator=generator) < self.config.null_share
        null = model.embed([""], [sample.targets[:0]])
        is_null = is_null.to(text_states.device)[:, None, None]
        text = TextEmbedding(torch.where(is_null, null, text_states))
        return denoising_errors(prior, draw_noisy(prior, latents, generator), text).mean()


def tuned_parameters(model: KosmosGModel) -> dict[str, nn.Parameter]:
    """What stage 3 trains: all but the image encoder before its last block."""
    vision = "mllm.vision_model.model."
    last = model.mllm.config.vision_config.num_hidden_layers - 1
    wanted = (f"{vision}encoder.layers.{last}.", f"{vision}post_layernorm.")
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith((vision, "aligner.decoder")) or name.startswith(wanted)
    }


def train_alignment(
    prior: DiffusionPrior,
    model: KosmosGModel,
    captions: Sequence[str],
    config: AlignTrainingConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train an aligner (stage 2); calling again with the same folder goes on.

    Args:
        prior: its text encoder is what the aligner learns to speak as; left as it is found.
        model: with an aligner of ``new_aligner``, which is trained in place; the rest is frozen.
        captions: what a text-to-image model may be told.
        config: settings.
        folder: the training's own. The result is its folder ``aligner``.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or there is nothing to train with.
        UnsupportedModel: the prior reads other text states.
    """
    loss = AlignmentLoss(prior, model, captions, config)
    told = hashlib.sha256("\0".join(captions).encode()).hexdigest()
    identity = identity_of(
        config, prior.fingerprint, [], {"captions": told, "model": model.fingerprint}
    )
    named = dict(model.aligner.named_parameters(prefix="aligner"))
    finished, step = _run(model, loss, named, config, folder, hooks, prior, identity)
    if not finished:
        return TrainingResult(False, step, ())
    write_aligner(folder / ALIGNER_FOLDER, model.aligner)
    return TrainingResult(True, step, (folder / ALIGNER_FOLDER,))


def train_instructions(
    prior: DiffusionPrior,
    model: KosmosGModel,
    batches: InstructionBatches,
    config: InstructionTuningConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train everything through the frozen denoiser (stage 3); calling again goes on.

    Args:
        prior: left as it is found.
        model: aligned before, float32; trained in place.
        batches: pictures with prompts and images.
        config: settings.
        folder: the training's own. The result is its folder ``kosmos-g``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training.
        UnsupportedModel: the prior reads other text states.
    """
    loss = InstructionLoss(prior, model, batches, config)
    told = identity_of(
        config, prior.fingerprint, [], {"batches": identity, "model": model.fingerprint}
    )
    named = tuned_parameters(model)
    with gradient_checkpointing([prior.unet], config.checkpointing):
        finished, step = _run(model, loss, named, config, folder, hooks, prior, told)
    if not finished:
        return TrainingResult(False, step, ())
    write_kosmos_g(folder / MODEL_FOLDER, model)
    return TrainingResult(True, step, (folder / MODEL_FOLDER,))


def _run(
    model: KosmosGModel,
    loss: Callable[[int, torch.Generator], Tensor],
    named: Mapping[str, nn.Parameter],
    config: AlignTrainingConfig | InstructionTuningConfig,
    folder: Path,
    hooks: LoopHooks | None,
    prior: DiffusionPrior,
    identity: str,
) -> tuple[bool, int]:
    """Train, and leave nothing wanting gradients."""
    model.eval().requires_grad_(False)
    groups = [ParameterGroup(named)]
    loop = TuningLoop(
        groups,
        config.loop,
        folder,
        device=prior.device,
        identity=identity,
        frozen_dtype=prior.dtype,
    )
    try:
        return loop.run(loss, hooks), loop.step
    finally:
        model.requires_grad_(False)
