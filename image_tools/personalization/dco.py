"""Direct consistency optimisation (DCO, Lee et al. 2024): a LoRA consistent with its prior.

    l_theta = mean_chw || eps_theta(z_t; c_s) - eps ||^2     the student, c_s with the placeholder
    l_phi   = mean_chw || eps_phi(z_t; c_b) - eps ||^2       the prior, c_b with the class word
    L = - log sigmoid(-beta (l_theta - l_phi))

It starts at log 2 with beta / 2 times the gradient of the mean squared error, and fades once the
student is better than the prior by much more than 1 / beta: what the prior knows about views,
backgrounds and styles is not trained away. The sigmoid is taken per sample (the authors' code: of
the batch's mean; the same for its batches of one). Errors are in the denoiser's own
parametrisation. The prior's pass has all of the student's parts off, text encoders included, on
which the student's gradient does not depend.

Sampling and 3D guidance with both weights: ``consistency``. To merge a subject and a style, add
their LoRAs, or give both to ``ConsistencyPrior``.

    result = train_dco(prior, photos.images, captions, DcoConfig(), folder)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import (
    CaptionedImages,
    cache_latents,
    rows_of_batch,
)
from image_tools.personalization.captions import SubjectCaptions
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TextSource, TrainingResult, identity_of
from image_tools.personalization.dreambooth_configs import DcoConfig
from image_tools.personalization.dreambooth_lora import (
    run_lora_training,
    start_digest,
    trained_lora,
)
from image_tools.personalization.embedding_files import write_embedding
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop, batch_generator
from image_tools.personalization.tokens import (
    FIX_EOS,
    AttachedTokens,
    TokenEmbedding,
    attach_tokens,
    norm_keeper,
    word_embedding,
)
from image_tools.personalization.trainable_lora import TrainableLora

__all__ = ["DcoLoss", "dco_loss", "train_dco"]

WORD_DRAW = 1 << 42


def dco_loss(
    student: Float[Tensor, " b"], reference: Float[Tensor, " b"], beta: float
) -> Float[Tensor, ""]:
    """Mean of ``-log sigmoid(-beta (l_theta - l_phi))`` over the samples."""
    return -F.logsigmoid(-beta * (student - reference.detach())).mean()


class DcoLoss:
    """Loss of batch number k."""

    def __init__(
        self,
        lora: TrainableLora,
        subject: CaptionedImages,
        base_captions: tuple[str, ...],
        config: DcoConfig,
        *,
        is_text_trained: bool,
    ) -> None:
        """Cache latents, the prior's text, and the student's if its encoders stay as they are."""
        self.lora, self.prior, self.config = lora, lora.prior, config
        self.subject, self.base_captions = subject, base_captions
        self.latents = cache_latents(self.prior, subject.images, mirrored=config.batch.mirrored)
        self.text = TextSource(self.prior, subject.captions, is_trained=is_text_trained)
        with lora.off():
            self.base_text = TextSource(self.prior, base_captions, is_trained=False)

    def __call__(self, batch: int, generator: torch.Generator) -> Tensor:
        """``L`` of a batch."""
        return dco_loss(*self.errors(batch, generator), self.config.beta)

    def errors(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``l_theta`` and ``l_phi`` of each sample, on the same noisy latents."""
        config = self.config.batch
        rows = rows_of_batch(
            len(self.subject), config.size, seed=self.config.loop.seed, batch=batch
        )
        latents = self.latents.draw(rows, generator)
        noisy = draw_noisy(self.prior, latents, generator, offset_noise=config.offset_noise)
        with torch.no_grad(), self.lora.off():
            base_text = self.base_text([self.base_captions[row] for row in rows])
            reference = denoising_errors(self.prior, noisy, base_text)
        text = self.text([self.subject.captions[row] for row in rows])
        return denoising_errors(self.prior, noisy, text), reference


def train_dco(
    prior: DiffusionPrior,
    images: Float[Tensor, "n h w 3"],
    captions: SubjectCaptions,
    config: DcoConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
    start: LoraFile | None = None,
) -> TrainingResult:
    """Train a LoRA, and new words where the captions insert some; the same call goes on.

    Files are those of ``train_dreambooth_lora``, and one ``embeddings/<n>.safetensors`` per word.

    Args:
        prior: left as it is found; in hooks it acts with what is learned so far.
        images: the photos.
        captions: two sentences for each.
        config: settings.
        folder: the training's own.
        hooks: progress, samples, a stop request.
        start: a LoRA to go on from, for instance that of a partial training; its own shapes count,
            and the prior's pass is without it.

    Raises:
        StudioError: the folder holds another training, or words or layers do not fit the prior.
    """
    subject = CaptionedImages(images, captions.prompts)
    base = CaptionedImages(images, captions.base_prompts)
    words = dict(zip(captions.tokens, captions.initializers, strict=True))
    identity = identity_of(
        config, prior.fingerprint, [subject, base], {**words, **start_digest(start)}
    )
    generator = batch_generator(config.loop.seed, WORD_DRAW)
    embeddings = [_first_rows(prior, *pair, generator) for pair in words.items()]
    with _attached(prior, embeddings) as tokens, trained_lora(prior, config, start) as lora:
        is_text_trained = lora.changes_text or tokens is not None
        loss = DcoLoss(
            lora, subject, captions.base_prompts, config, is_text_trained=is_text_trained
        )
        groups = lora.groups(text_learning_rate=config.text_learning_rate)
        hooks = hooks or LoopHooks()
        if tokens is not None:
            groups.append(ParameterGroup(tokens.parameters(), config.text_learning_rate, 0.0))
            hooks = replace(hooks, after_step=_after_step(tokens, hooks.after_step))
        loop = TuningLoop(
            groups,
            config.loop,
            folder,
            device=prior.device,
            identity=identity,
            frozen_dtype=prior.dtype,
        )
        result = run_lora_training(lora, loop, loss, hooks)
        return result if tokens is None else _write_words(result, tokens, folder)


@contextmanager
def _attached(
    prior: DiffusionPrior, embeddings: list[TokenEmbedding]
) -> Iterator[AttachedTokens | None]:
    """The new words on the prior, if there are any; pooled where the authors' code does."""
    words = [replace(word, metadata={**word.metadata, FIX_EOS: "false"}) for word in embeddings]
    with ExitStack() as stack:
        yield stack.enter_context(attach_tokens(prior, words, fix_eos=False)) if words else None


def _first_rows(
    prior: DiffusionPrior, token: str, word: str, generator: torch.Generator
) -> TokenEmbedding:
    """A new word that means a known one, or nothing: as long as the vocabulary's rows deviate."""
    if word:
        return word_embedding(prior, token, word)
    tables = [tower.encoder.get_input_embeddings().weight for tower in prior.text.towers]
    rows = [
        table.detach().float().std().cpu() * torch.randn(1, table.shape[1], generator=generator)
        for table in tables
    ]
    return TokenEmbedding(token, tuple(rows), 0)


def _after_step(tokens: AttachedTokens, after_step: Callable[[int], None]) -> Callable[[int], None]:
    """Bring each row back to the length it began with, then do what the caller wants."""
    keep = norm_keeper(tokens.parameters())

    def both(step: int) -> None:
        keep()
        after_step(step)

    return both


def _write_words(result: TrainingResult, tokens: AttachedTokens, folder: Path) -> TrainingResult:
    """Add the words' files to the result of a finished training."""
    if not result.finished:
        return result
    paths = []
    for index, token in enumerate(tokens.rows):
        embedding = tokens.embedding(token, step=result.step)
        layout = "sdxl" if len(embedding.rows) == 2 else "diffusers"
        paths.append(folder / "embeddings" / f"{index}.safetensors")
        write_embedding(paths[-1], embedding, layout=layout)
    return replace(result, files=(*paths, *result.files))
