"""Training of MS-Diffusion's adapter (arXiv 2406.07209, section 4.1).

The loss is the prior's own over the resampler and the projections for images; denoiser, image
encoder and text encoders are frozen. Images of one sample are of the subjects in its target, seen
elsewhere; samples with fewer than the batch has room for are padded with empty boxes. Dropped are,
disjointly, all images (pixels of 0 after CLIP's normalisation), the text, or both, and apart from
that the grounding. Dummy tokens have no effect and are not trained.

Where batches come from is the caller's: batch k depends on its number and the generator alone, so
that a training that was killed goes on bit for bit. What is written has the published names.

    adapter = new_ms_adapter(prior, clip, generator=generator)
    result = train_ms_diffusion(prior, clip, adapter, batches, config, folder, identity="toybox")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.errors import UnsupportedModel
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.ip_adapter_training import draw_drops
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from image_tools.personalization.ms_diffusion import MSAdapter, MSDiffusionPrior
from image_tools.personalization.ms_diffusion_attention import SubjectRows
from image_tools.personalization.ms_diffusion_configs import (
    MSShape,
    MSTrainingConfig,
)
from image_tools.personalization.ms_diffusion_subjects import phrase_embeddings
from image_tools.personalization.ms_diffusion_weights import write_ms_adapter
from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError

__all__ = [
    "Dropped",
    "SubjectBatch",
    "SubjectBatches",
    "SubjectsLoss",
    "draw_dropped",
    "new_ms_adapter",
    "train_ms_diffusion",
]

FILE_NAME = "ms_adapter.safetensors"


@dataclass(frozen=True)
class SubjectBatch:
    """Pictures, what they show, and their subjects as seen elsewhere."""

    images: Float[Tensor, "b h w 3"]
    captions: tuple[str, ...]
    references: Float[Tensor, "b subjects s s 3"]
    """In 0..1; anything where a sample has fewer subjects."""
    phrases: tuple[tuple[str, ...], ...]
    """Of each sample's subjects; an empty one where there is none."""
    boxes: Float[Tensor, "b subjects 4"]
    """[x0, y0, x1, y1] in 0..1; all 0 where there is none."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = (len(self.images), len(self.captions), len(self.references), len(self.phrases))
        rooms = {self.references.shape[1], self.boxes.shape[1], *map(len, self.phrases)}
        if len({*sizes, len(self.boxes)}) > 1 or len(rooms) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} images, {sizes[1]} captions, {sizes[2]} sets of "
                f"references, {sizes[3]} of phrases and {len(self.boxes)} of boxes, with places "
                f"for {sorted(rooms)} subjects. Give one of each for every sample, of equal length."
            )


SubjectBatches = Callable[[int, torch.Generator], SubjectBatch]
"""Batch number k; everything random in it comes from the generator."""


@dataclass(frozen=True)
class Dropped:
    """What is hidden of each sample of a batch."""

    image: Bool[Tensor, " b"]
    text: Bool[Tensor, " b"]
    grounding: Bool[Tensor, " b"]


def draw_dropped(rows: int, config: MSTrainingConfig, generator: torch.Generator) -> Dropped:
    """Hide images, text or both, and grounding independently of them."""
    image, text = draw_drops(rows, config.drops, generator)
    grounding = torch.rand(rows, generator=generator) < config.grounding_drop
    return Dropped(image, text, grounding)


def new_ms_adapter(
    prior: DiffusionPrior,
    clip: ClipImages,
    *,
    generator: torch.Generator,
    dim: int = 1280,
    depth: int = 4,
    tokens: int = 16,
    dummies: int = 4,
) -> MSAdapter:
    """An untrained adapter for a prior; sizes that are not told are the published ones.

    Args:
        prior: the model to be personalized.
        clip: image encoder that it will be used with.
        generator: of initial weights.
        dim: width of the resampler, of 64 for each head.
        depth: layers of the resampler.
        tokens: of each image.
        dummies: tokens for places without a subject.
    """
    shape = MSShape(
        image_width=clip.width,
        phrase_width=phrase_embeddings(prior, ["a"]).shape[1],
        text_width=prior.unet.config.cross_attention_dim,
        dim=dim,
        heads=dim // 64,
        depth=depth,
        tokens=tokens,
        dummies=dummies,
    )
    with torch.device("meta"):  # or its layers would draw from PyTorch's own generator
        adapter = MSAdapter(prior.unet, shape)
    adapter.to_empty(device="cpu")
    adapter.start(prior.unet, generator)
    return adapter.to(prior.device)


class SubjectsLoss:
    """Loss of batch number k for an adapter on a prior."""

    def __init__(
        self,
        prior: DiffusionPrior,
        clip: ClipImages,
        adapter: MSAdapter,
        batches: SubjectBatches,
        config: MSTrainingConfig,
    ) -> None:
        """Keep what a batch needs.

        Raises:
            UnsupportedModel: the image encoder is not the adapter's.
        """
        if clip.width != adapter.shape.image_width:
            raise UnsupportedModel(
                f"The image encoder makes tokens of {clip.width} numbers, the adapter reads "
                f"{adapter.shape.image_width}. Expected the encoder that it was made for."
            )
        self.prior, self.clip, self.adapter = prior, clip, adapter
        self.batches, self.config = batches, config

    def __call__(self, number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        batch = self.batches(number, generator)
        dropped = draw_dropped(len(batch.captions), self.config, generator)
        prompts = [
            "" if is_hidden else caption
            for is_hidden, caption in zip(dropped.text.tolist(), batch.captions, strict=True)
        ]
        with torch.no_grad():
            mean, std = self.prior.encode_posterior(batch.images.to(self.prior.device))
            latents = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
            text = encode_text(self.prior, prompts)
        noisy = draw_noisy(self.prior, latents, generator)
        subjects = MSDiffusionPrior(self.prior, self.adapter, self.subjects(batch, dropped))
        return denoising_errors(subjects, noisy, text).mean()

    def subjects(self, batch: SubjectBatch, dropped: Dropped) -> SubjectRows:
        """The subjects of a batch, with gradient to the adapter."""
        rows, room = batch.boxes.shape[:2]
        device = self.prior.device
        boxes = batch.boxes.to(device)
        phrases = [phrase for own in batch.phrases for phrase in own]
        tokens = self.adapter.image_proj(
            self._features(batch.references.to(device), dropped.image.to(device)),
            phrase_embeddings(self.prior, phrases),
            boxes.flatten(0, 1),
            dropped.grounding.to(device).repeat_interleave(room),
        )
        ones = boxes.new_ones(rows, room)
        return SubjectRows(tokens.unflatten(0, (rows, room)), boxes, ones, ones[..., None])

    @torch.no_grad()
    def _features(
        self, references: Float[Tensor, "b subjects s s 3"], hidden: Bool[Tensor, " b"]
    ) -> Float[Tensor, "n m width"]:
        pixels = self.clip.preprocess(references.flatten(0, 1))
        keeps = (~hidden).repeat_interleave(references.shape[1])
        return self.clip.see(pixels * keeps[:, None, None, None].to(pixels)).hidden


def train_ms_diffusion(
    prior: DiffusionPrior,
    clip: ClipImages,
    adapter: MSAdapter,
    batches: SubjectBatches,
    config: MSTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train an adapter; calling again with the same folder goes on.

    Args:
        prior: left as it is found.
        clip: sees the references.
        adapter: as of ``new_ms_adapter``, or one to train further; float32. It is trained in
            place, and frozen at the end.
        batches: pictures with their subjects.
        config: settings.
        folder: the training's own. The result is its file ``ms_adapter.safetensors``; adapters of
            ``checkpoint_steps`` are kept beside it.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the adapter is not float32.
        UnsupportedModel: the image encoder is not the adapter's.
    """
    hooks = hooks or LoopHooks()
    loss = SubjectsLoss(prior, clip, adapter, batches, config)
    trained = dict(adapter.named_parameters())
    trained.pop("dummy_image_tokens").requires_grad_(False)
    loop = TuningLoop(
        [ParameterGroup(trained)],
        config.loop,
        folder,
        device=prior.device,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
        frozen_dtype=prior.dtype,
    )

    def checkpoint(step: int) -> None:
        write_ms_adapter(_step_path(folder, step), adapter)
        hooks.checkpoint(step)

    with gradient_checkpointing([prior.unet], config.checkpointing):
        finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    adapter.eval().requires_grad_(False)
    files = [_step_path(folder, step) for step in config.loop.checkpoint_steps]
    files = [path for path in files if path.exists()]
    if finished:
        files.append(folder / FILE_NAME)
        write_ms_adapter(files[-1], adapter)
    return TrainingResult(finished, loop.step, tuple(files))


def _step_path(folder: Path, step: int) -> Path:
    return folder / "ms_adapters" / f"step-{step:06d}.safetensors"
