"""Textual Inversion (arXiv 2208.01618): learn a word for what a few photos show.

    v* = argmin_v  E || f(z_t; y(v)) - target ||^2  +  reg_weight mean_i || v_i - v_i^0 ||^2

Eq. 2 of the paper with the target of the prior's own parametrisation. The word's rows are the only
parameters (``tokens``): the rest of the embedding table, which the usual scripts train and put back
after each step, never has a gradient. Weight decay is off by default, since it would pull the word
towards nothing. SDXL's word has rows for both encoders, which are trained together.

The prior is left as it was found. Files: ``embeddings/step-000100.safetensors`` at the checkpoint
steps and ``learned_embeds.safetensors`` at the end, which stock diffusers loads (for SDXL in the
layout of A1111 and ComfyUI, which it does not).

    photos = load_photos(folder, size=prior.image_size)
    config = TextualInversionConfig(token="<my-dog>", init_word="dog")
    result = train_textual_inversion(prior, photos.images, config, run_folder)
    with attach_tokens(prior, read_embeddings(result.files[-1])):
        ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import CaptionedImages, cache_latents, rows_of_batch
from image_tools.personalization.denoising import denoising_errors, draw_noisy, min_snr_weights
from image_tools.personalization.dreambooth import TextSource, TrainingResult, identity_of
from image_tools.personalization.embedding_files import write_embedding
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from image_tools.personalization.textual_inversion_configs import TextualInversionConfig
from image_tools.personalization.tokens import (
    FIX_EOS,
    AttachedTokens,
    attach_tokens,
    norm_keeper,
    word_embedding,
)

__all__ = ["WORD_FILE_NAME", "TextualInversionLoss", "train_textual_inversion"]

WORD_FILE_NAME = "learned_embeds.safetensors"


class TextualInversionLoss:
    """Loss of batch number k for a word that is attached to the prior."""

    def __init__(
        self,
        prior: DiffusionPrior,
        images: Float[Tensor, "n h w 3"],
        tokens: AttachedTokens,
        config: TextualInversionConfig,
    ) -> None:
        """Cache the photos' latents and remember the word's first rows."""
        self.prior, self.config = prior, config
        self.latents = cache_latents(prior, images, mirrored=config.batch.mirrored)
        self.captions = [caption.replace("{}", config.token) for caption in config.captions]
        self.text = TextSource(prior, self.captions, is_trained=True)
        self.rows = list(tokens.parameters().values())
        self.first_rows = [rows.detach().clone() for rows in self.rows]

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch, and the distance to the first rows."""
        size, seed = self.config.batch.size, self.config.loop.seed
        photos = rows_of_batch(len(self.latents), size, seed=seed, batch=batch)
        latents = self.latents.draw(photos, generator)
        chosen = torch.randint(len(self.captions), (size,), generator=generator).tolist()
        text = self.text([self.captions[index] for index in chosen])
        noisy = draw_noisy(
            self.prior, latents, generator, offset_noise=self.config.batch.offset_noise
        )
        weights = min_snr_weights(self.prior, noisy.t, self.config.batch.min_snr_gamma)
        loss = (weights * denoising_errors(self.prior, noisy, text)).mean()
        if self.config.reg_weight == 0.0:
            return loss
        return loss + self.config.reg_weight * self.distance().to(loss.device)

    def distance(self) -> Float[Tensor, ""]:
        """Squared distance to the first rows: the mean over vectors, summed over encoders."""
        pairs = zip(self.rows, self.first_rows, strict=True)
        return sum((now - first).square().sum(dim=1).mean() for now, first in pairs)


def train_textual_inversion(
    prior: DiffusionPrior,
    images: Float[Tensor, "n h w 3"],
    config: TextualInversionConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Learn a word; calling again with the same folder goes on.

    Args:
        prior: of any kind, left as it is found; in hooks it knows the word as learned so far.
        images: the photos.
        config: settings; ``init_word`` must be given.
        folder: the training's own.
        hooks: progress, samples, a stop request.

    Raises:
        PlaceholderError: the word is in the vocabulary, or ``init_word`` is missing or unknown.
        StudioError: the folder holds another training.
    """
    photos = CaptionedImages(images, (config.token,) * len(images))
    hooks = hooks or LoopHooks()
    first = word_embedding(prior, config.token, config.init_word, vectors=config.vectors)
    origin = {"prior": prior.fingerprint, FIX_EOS: str(config.fix_eos).lower()}
    first = replace(first, metadata={**first.metadata, **origin})
    identity = identity_of(config, prior.fingerprint, [photos])
    with (
        attach_tokens(prior, [first], fix_eos=config.fix_eos) as tokens,
        gradient_checkpointing([prior.unet], config.batch.checkpointing),
    ):
        loss = TextualInversionLoss(prior, images, tokens, config)
        hooks = replace(hooks, after_step=_after_step(tokens, config, hooks))
        # The loop loads a saved state into the rows; what remembers the first ones is made before.
        groups = [ParameterGroup(tokens.parameters())]
        loop = TuningLoop(
            groups,
            config.loop,
            folder,
            device=prior.device,
            identity=identity,
            frozen_dtype=prior.dtype,
        )
        return _run(tokens, loop, loss, config, hooks)


def _after_step(
    tokens: AttachedTokens, config: TextualInversionConfig, hooks: LoopHooks
) -> Callable[[int], None]:
    """The caller's hook, and lengths brought back before it where they are to be kept."""
    if config.norm == "free":
        return hooks.after_step
    keep = norm_keeper(tokens.parameters())

    def both(step: int) -> None:
        keep()
        hooks.after_step(step)

    return both


def _run(
    tokens: AttachedTokens,
    loop: TuningLoop,
    loss: TextualInversionLoss,
    config: TextualInversionConfig,
    hooks: LoopHooks,
) -> TrainingResult:
    """Run the loop and write the word at its checkpoints and at its end."""

    def write(path: Path) -> None:
        embedding = tokens.embedding(config.token, step=loop.step)
        layout = "sdxl" if len(embedding.rows) == 2 else "diffusers"
        write_embedding(path, embedding, layout=layout)

    def checkpoint(step: int) -> None:
        write(_step_file(loop.folder, step))
        hooks.checkpoint(step)

    finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    files = [_step_file(loop.folder, step) for step in config.loop.checkpoint_steps]
    files = [path for path in files if path.exists()]
    if finished:
        files.append(loop.folder / WORD_FILE_NAME)
        write(files[-1])
    return TrainingResult(finished, loop.step, tuple(files))


def _step_file(folder: Path, step: int) -> Path:
    return folder / "embeddings" / f"step-{step:06d}.safetensors"
