"""Training of PhotoMaker (arXiv 2312.04461): ID encoder and the denoiser's LoRA.

    L = E m || f(z_t; t, y(x_1 .. x_n)) - target ||^2,   1 <= n <= 4

in the prior's own parametrisation. x_1 .. x_n are other photos of the person in the target picture,
never that picture itself, so that nothing but the identity can be copied; noise stands where they
show something else. In half of the samples m is the person's mask, in the others 1; in a tenth of
them y is the unconditional prompt. The LoRA is trained at 1e-4, everything else at 1e-5. Denoiser,
VAE and text encoders stay as they are.

Two things are our choice: the masked error is a mean over the mask, so that small people count as
large ones do, and the noise around people is uniform.

    encoder = encoder_from_clip(clip, text_width=2048, generator=generator)
    result = train_photomaker(prior, encoder, people, PhotoMakerTrainingConfig(), folder)
    prior = photomaker_prior(prior, read_photomaker(result.files[-1]), images, merge_t=799)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import TextEmbedding, cat_embeddings
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import CaptionedImages, cache_latents, rows_of_batch
from image_tools.personalization.denoising import draw_noisy
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.dreambooth_lora import start_digest
from image_tools.personalization.in_place import in_place
from image_tools.personalization.loop import (
    LoopHooks,
    ParameterGroup,
    TuningLoop,
    batch_generator,
)
from image_tools.personalization.photomaker import encode_repeated
from image_tools.personalization.photomaker_encoder import IdEncoder, fuse_rows
from image_tools.personalization.photomaker_files import PhotoMakerFile, write_photomaker
from image_tools.personalization.photomaker_people import (
    PeoplePhotos,
    on_noise,
    other_photos,
)
from image_tools.personalization.photomaker_tokens import RepeatingTokenizer
from image_tools.personalization.photomaker_training_configs import PhotoMakerTrainingConfig
from image_tools.personalization.trainable_lora import TrainableLora

__all__ = [
    "PhotoMakerLoss",
    "masked_errors",
    "train_photomaker",
]

FILE_NAME = "photomaker.safetensors"
LORA_NAME = "photomaker"
# Number of the generator that draws the LoRA; far from those of batches.
DRAW = 1 << 41


def masked_errors(
    errors: Float[Tensor, "b c s s"],
    masks: Float[Tensor, "b h w"],
    is_masked: Bool[Tensor, " b"],
) -> Float[Tensor, " b"]:
    """Mean error of each sample, over its mask where that is wanted; an empty mask is none."""
    shares = F.interpolate(masks[:, None], errors.shape[-2:], mode="area").to(errors)
    is_masked = is_masked.to(errors.device) & (shares.flatten(1).sum(dim=1) > 0.0)
    weights = torch.where(is_masked[:, None, None, None], shares, torch.ones_like(shares))
    total = (weights * errors.mean(dim=1, keepdim=True)).flatten(1).sum(dim=1)
    return total / weights.flatten(1).sum(dim=1)


class PhotoMakerLoss:
    """Loss of batch number k."""

    def __init__(
        self,
        prior: DiffusionPrior,
        encoder: IdEncoder,
        photos: PeoplePhotos,
        config: PhotoMakerTrainingConfig,
    ) -> None:
        """Cache what does not change while training.

        Raises:
            TriggerError: a caption does not name the person, or has no place for the photos.
        """
        most = config.max_photos * encoder.tokens
        for tower in prior.text.towers:
            tokenizer = RepeatingTokenizer(tower.tokenizer, config.trigger, copies=most)
            for caption in dict.fromkeys(photos.captions):
                tokenizer.span(caption)
        self.prior, self.encoder, self.photos, self.config = prior, encoder, photos, config
        self.latents = cache_latents(prior, photos.images, mirrored=False)
        self.unconditional = prior.encode_negative([""])

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        prior, config, size = self.prior, self.config, self.config.batch_size
        rows = rows_of_batch(len(self.latents), size, seed=config.loop.seed, batch=batch)
        is_empty, is_masked = (
            torch.rand(size, generator=generator) < share
            for share in (config.empty_prompts, config.masked)
        )
        noisy = draw_noisy(prior, self.latents.draw(rows, generator), generator)
        text = self.text(rows, is_empty, generator)
        output = prior.predict_output(noisy.z_t, noisy.t, text)
        errors = (output.float() - noisy.target.float()).square()
        masks = self.photos.masks[rows].to(errors.device)
        return masked_errors(errors, masks, is_masked).mean()

    def text(
        self, rows: Sequence[int], is_empty: Bool[Tensor, " b"], generator: torch.Generator
    ) -> TextEmbedding:
        """What each sample is told; gradients reach the encoder."""
        shown = [
            other_photos(self.photos.people, row, self.config.max_photos, generator) for row in rows
        ]
        identities = self._identities([each for photos in shown for each in photos], generator)
        parts = identities.split([len(photos) for photos in shown])
        told = [
            self.unconditional if empty else self._fused(row, part.flatten(0, 1))
            for row, part, empty in zip(rows, parts, is_empty.tolist(), strict=True)
        ]
        return cat_embeddings(told)

    def _identities(
        self, chosen: Sequence[int], generator: torch.Generator
    ) -> Float[Tensor, "n tokens width"]:
        photos = self.photos
        images = on_noise(photos.images[chosen], photos.masks[chosen], generator)
        faces = None if photos.faces is None else photos.faces[chosen]
        return self.encoder.identify(images, faces)

    def _fused(self, row: int, identity: Float[Tensor, "m width"]) -> TextEmbedding:
        caption, trigger = self.photos.captions[row], self.config.trigger
        with torch.no_grad():
            text, span = encode_repeated(self.prior, caption, trigger, len(identity))
        return replace(
            text, tokens=fuse_rows(self.encoder.fuse_module, text.tokens, span, identity)
        )


def train_photomaker(
    prior: DiffusionPrior,
    encoder: IdEncoder,
    photos: PeoplePhotos,
    config: PhotoMakerTrainingConfig,
    folder: Path,
    *,
    hooks: LoopHooks | None = None,
    start: LoraFile | None = None,
) -> TrainingResult:
    """Train a PhotoMaker; calling again with the same folder goes on.

    Args:
        prior: left as it is found; in hooks it acts with the LoRA learned so far.
        encoder: as of ``encoder_from_clip``, or one to train further; float32, trained in place.
        photos: people to learn from.
        config: settings.
        folder: the training's own. The result is its ``photomaker.safetensors``.
        hooks: progress, samples, a stop request.
        start: a LoRA to go on from, that of the encoder's file; None for a new one.

    Raises:
        StudioError: the folder holds another training, or v2 has no faces.
        TriggerError: a caption does not name the person, or has no place for the photos.
    """
    encoder.to(prior.device)
    captioned = CaptionedImages(photos.images, photos.captions)
    loss, plain = PhotoMakerLoss(prior, encoder, photos, config), prior.fingerprint
    with (
        in_place(encoder, folder, lambda: _digest(encoder, photos)) as began,
        _trained_lora(prior, config, start) as lora,
    ):
        facts = {"photomaker": began, **start_digest(start)}
        identity = identity_of(config, plain, [captioned], facts)
        groups = lora.groups(text_learning_rate=0.0)
        groups.append(ParameterGroup(_trained(encoder, config), config.encoder_learning_rate))
        loop = TuningLoop(
            groups,
            config.loop,
            folder,
            device=prior.device,
            identity=identity,
            frozen_dtype=prior.dtype,
        )

        def write(path: Path) -> None:
            write_photomaker(path, PhotoMakerFile(encoder, lora.file()))

        try:
            return _run(loop, loss, hooks or LoopHooks(), write)
        finally:
            encoder.requires_grad_(False)


@contextmanager
def _trained_lora(
    prior: DiffusionPrior, config: PhotoMakerTrainingConfig, start: LoraFile | None
) -> Iterator[TrainableLora]:
    """The LoRA to train, on the prior for the time of the training."""
    generator = batch_generator(config.loop.seed, DRAW)
    lora = TrainableLora(prior, config.lora, name=LORA_NAME, generator=generator, start=start)
    try:
        with gradient_checkpointing([prior.unet], config.checkpointing):
            yield lora
    finally:
        lora.detach()


def _run(
    loop: TuningLoop,
    loss: PhotoMakerLoss,
    hooks: LoopHooks,
    write: Callable[[Path], None],
) -> TrainingResult:
    """Run the loop and write files at its checkpoints and at its end."""

    def checkpoint(step: int) -> None:
        write(_step_file(loop.folder, step))
        hooks.checkpoint(step)

    finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    files = [_step_file(loop.folder, step) for step in loop.config.checkpoint_steps]
    files = [path for path in files if path.exists()]
    if finished:
        files.append(loop.folder / FILE_NAME)
        write(files[-1])
    return TrainingResult(finished, loop.step, tuple(files))


def _trained(encoder: IdEncoder, config: PhotoMakerTrainingConfig) -> dict[str, nn.Parameter]:
    """The encoder's parameters that are trained: all, or those behind CLIP and its last layers."""
    named = {f"encoder.{name}": p for name, p in encoder.named_parameters()}
    if config.clip_layers is None:
        return named
    clip, count = "encoder.vision_model.", encoder.shape.layers
    last = range(max(0, count - config.clip_layers), count)
    opened = tuple(f"{clip}encoder.layers.{layer}." for layer in last)
    return {n: p for n, p in named.items() if not n.startswith(clip) or n.startswith(opened)}


def _digest(encoder: IdEncoder, photos: PeoplePhotos) -> str:
    """Of what makes this training another one, beyond pictures, captions and settings."""
    digest = hashlib.sha256(json.dumps(photos.people).encode())
    tensors = {"masks": photos.masks, "faces": photos.faces, **encoder.state_dict()}
    for name, tensor in tensors.items():
        if tensor is not None:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _step_file(folder: Path, step: int) -> Path:
    return folder / "photomakers" / f"step-{step:06d}.safetensors"
