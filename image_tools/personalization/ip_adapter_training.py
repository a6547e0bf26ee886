"""Training of IP-Adapters (arXiv 2308.06721, sections 3.2.2 and 4.1).

    L = E || f(z_t; t, y, c) - target ||^2     (Eq. 6, in the prior's own parametrisation)

over the projector and the keys and values for images; denoiser, encoders and text are frozen, and
what they make of a picture is computed once. Images, texts or both are dropped, so that guidance
has something to lead away from. faceid variants are trained without the LoRA that the public ones
have beside them.

    data = cache_image_prompts(prior, captioned, clip=clip, part="pooled")
    adapter = new_ip_adapter(prior.unet, "base", image_width=clip.pooled_width, generator=generator)
    result = train_ip_adapter(prior, adapter, data, config, folder, identity="my photos")
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.diffusion.conditions import TextEmbedding, cat_embeddings
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.stock_modules import gradient_checkpointing
from image_tools.personalization.captioned import (
    CaptionedImages,
    LatentCache,
    cache_latents,
    encode_text,
    rows_of_batch,
)
from image_tools.personalization.denoising import denoising_errors, draw_noisy, min_snr_weights
from image_tools.personalization.dreambooth import TrainingResult, identity_of
from image_tools.personalization.ip_adapter import IPAdapter
from image_tools.personalization.ip_adapter_configs import ImageDropConfig, IPAdapterTrainingConfig
from image_tools.personalization.ip_adapter_files import write_ip_adapter
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.loop import LoopHooks, ParameterGroup, TuningLoop
from image_tools.personalization.reference_features import (
    ClipPart,
    ReferenceFeatures,
    encode_references,
)
from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError

__all__ = [
    "IPAdapterLoss",
    "ImagePromptBatch",
    "ImagePromptCache",
    "ImagePromptData",
    "cache_image_prompts",
    "draw_drops",
    "train_ip_adapter",
]

FILE_NAME = "ip_adapter.safetensors"
SEEN_AT_ONCE = 8


@dataclass(frozen=True)
class ImagePromptBatch:
    """What the denoiser learns from, all of it encoded."""

    latents: Float[Tensor, "b c s s"]
    text: TextEmbedding
    """What each picture shows, in words."""
    features: ReferenceFeatures
    """What encoders see of each picture, or of another one of the same thing."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = (len(self.latents), len(self.text), len(self.features))
        if len(set(sizes)) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} latents, {sizes[1]} texts and {sizes[2]} reference "
                "images. Give one of each for every sample."
            )


class ImagePromptData(Protocol):
    """Where batches come from."""

    empty: TextEmbedding
    """The text of no caption, one row."""
    absent: ReferenceFeatures
    """What stands where there is no image, one row."""

    def __call__(self, number: int, generator: torch.Generator) -> ImagePromptBatch:
        """Batch ``number``; everything random in it comes from the generator."""
        ...


@dataclass(frozen=True)
class ImagePromptCache:
    """Captioned images with everything that is frozen computed once."""

    latents: LatentCache
    text: TextEmbedding
    features: ReferenceFeatures
    empty: TextEmbedding
    absent: ReferenceFeatures
    batch_size: int = 8
    seed: int = 0

    def __call__(self, number: int, generator: torch.Generator) -> ImagePromptBatch:
        """Whole shuffled rounds through the images, batch by batch."""
        rows = rows_of_batch(len(self.latents), self.batch_size, seed=self.seed, batch=number)
        index = torch.tensor(rows)
        latents = self.latents.draw(rows, generator)
        return ImagePromptBatch(latents, self.text.select(index), self.features.select(index))


@torch.no_grad()
def cache_image_prompts(
    prior: DiffusionPrior,
    data: CaptionedImages,
    *,
    part: ClipPart,
    clip: ClipImages | None = None,
    face: Float[Tensor, "n width"] | None = None,
    references: Float[Tensor, "n h w 3"] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> ImagePromptCache:
    """Encode pictures, captions and references for an adapter that reads ``part`` of CLIP's.

    Args:
        prior: encodes pictures and captions.
        data: what is learned.
        part: ``adapter.image_proj.clip``.
        clip: sees the references.
        face: identities, for faceid variants.
        references: what is shown for each picture; None for the picture itself.
        batch_size: samples of a batch.
        seed: of the order of the pictures.
    """
    seen = data.images if references is None else references
    device, parts = prior.device, []
    for rows in torch.arange(len(data)).split(SEEN_AT_ONCE):
        own_face = None if face is None else face[rows].to(device)
        parts.append(encode_references(seen[rows].to(device), part=part, clip=clip, face=own_face))
    return ImagePromptCache(
        cache_latents(prior, data.images, mirrored=False),
        cat_embeddings([encode_text(prior, [caption]) for caption in data.captions]),
        ReferenceFeatures.stack([present for present, _ in parts]),
        encode_text(prior, [""]),
        parts[0][1].select(torch.tensor([0])),
        batch_size,
        seed,
    )


def draw_drops(
    rows: int, drops: ImageDropConfig, generator: torch.Generator
) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Which samples lose their image, and which their text; the shares are disjoint."""
    fate = torch.rand(rows, generator=generator)
    no_image = fate < drops.image
    no_text = (fate >= drops.image) & (fate < drops.image + drops.text)
    neither = (fate >= drops.image + drops.text) & (fate < drops.image + drops.text + drops.both)
    return no_image | neither, no_text | neither


class IPAdapterLoss:
    """Loss of batch number k for an adapter in a prior."""

    def __init__(
        self,
        prior: DiffusionPrior,
        adapter: IPAdapter,
        data: ImagePromptData,
        config: IPAdapterTrainingConfig,
    ) -> None:
        """Put the adapter around the prior."""
        self.prior, self.adapter, self.data, self.config = prior, adapter, data, config
        self.shown = IPAdapterPrior(prior, adapter)

    def __call__(self, number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        batch, config = self.data(number, generator), self.config
        rows = len(batch.latents)
        no_image, no_text = draw_drops(rows, config.drops, generator)
        like = next(self.adapter.parameters())
        features = batch.features.where(~no_image, self.data.absent).to(like)
        tokens = self.adapter.tokens(features)[:, None]
        self.shown.show_tokens(tokens, tokens)
        index = torch.where(no_text, torch.full((rows,), rows), torch.arange(rows))
        text = cat_embeddings([batch.text, self.data.empty]).select(index)
        noisy = draw_noisy(self.prior, batch.latents, generator, offset_noise=config.offset_noise)
        weights = min_snr_weights(self.prior, noisy.t, config.min_snr_gamma)
        return (weights * denoising_errors(self.shown, noisy, text)).mean()


def train_ip_adapter(
    prior: DiffusionPrior,
    adapter: IPAdapter,
    data: ImagePromptData,
    config: IPAdapterTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train an adapter; calling again with the same folder goes on.

    Args:
        prior: left as it is found.
        adapter: as of ``new_ip_adapter``, or one to train further; float32. Frozen at the end.
        data: where batches come from.
        config: settings.
        folder: the training's own, with the result: ``ip_adapter.safetensors``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the adapter is not float32.
    """
    hooks = hooks or LoopHooks()
    group = ParameterGroup(dict(adapter.to(prior.device).named_parameters()))
    loop = TuningLoop(
        [group],
        config.loop,
        folder,
        device=prior.device,
        identity=identity_of(config, prior.fingerprint, [], {"batches": identity}),
        frozen_dtype=prior.dtype,
    )

    def checkpoint(step: int) -> None:
        write_ip_adapter(_step_path(folder, step), adapter)
        hooks.checkpoint(step)

    loss = IPAdapterLoss(prior, adapter, data, config)
    with gradient_checkpointing([prior.unet], config.checkpointing):
        finished = loop.run(loss, replace(hooks, checkpoint=checkpoint))
    adapter.eval().requires_grad_(False)
    if finished:
        write_ip_adapter(folder / FILE_NAME, adapter)
    return TrainingResult(finished, loop.step, _written(folder, config, finished))


def _written(folder: Path, config: IPAdapterTrainingConfig, finished: bool) -> tuple[Path, ...]:
    """The adapters of a training, the finished one last."""
    steps = [_step_path(folder, step) for step in config.loop.checkpoint_steps]
    last = [folder / FILE_NAME] if finished else []
    return (*(path for path in steps if path.exists()), *last)


def _step_path(folder: Path, step: int) -> Path:
    return folder / "ip_adapters" / f"step-{step:06d}.safetensors"
