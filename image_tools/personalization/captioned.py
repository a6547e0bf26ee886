"""Captioned images of a training, their cached latents, and which of them a batch takes.

Latents are drawn from the VAE's posterior at each use, as the prior was trained; only its mean and
spread are cached, also of the mirrored images where mirroring is wanted. Batches go through all
images in a random order before one comes again. Row choice depends only on (seed, batch).

    cache = cache_latents(prior, images, mirrored=False)
    rows = rows_of_batch(len(cache), 4, seed=0, batch=17)
    latents = cache.draw(rows, generator)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.loop import batch_generator
from renderers.errors import StudioError

__all__ = ["CaptionedImages", "LatentCache", "cache_latents", "encode_text", "rows_of_batch"]

ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class CaptionedImages:
    """Images with a caption each."""

    images: Float[Tensor, "n h w 3"]
    """In 0..1."""
    captions: tuple[str, ...]
    """One per image."""

    def __post_init__(self) -> None:
        """Refuse an empty set and captions that do not fit."""
        if not len(self.images) or len(self.images) != len(self.captions):
            raise StudioError(
                f"{len(self.images)} images came with {len(self.captions)} captions - expected at "
                "least one image and a caption for each. Give one caption per image."
            )

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class LatentCache:
    """Posterior of each image's latents; the second half of the rows are mirrored images."""

    mean: Float[Tensor, "rows c s s"]
    std: Float[Tensor, "rows c s s"]
    images: int
    """Number of images, without their mirrored ones."""

    def __len__(self) -> int:
        return self.images

    def draw(self, rows: Sequence[int], generator: torch.Generator) -> Float[Tensor, "b c s s"]:
        """A draw of the latents of images, each mirrored with probability 1/2 where cached so."""
        index = torch.tensor(rows)
        if len(self.mean) > self.images:
            is_mirrored = torch.rand(len(rows), generator=generator) < 0.5
            index = index + self.images * is_mirrored.long()
        noise = torch.randn(len(rows), *self.mean.shape[1:], generator=generator)
        index = index.to(self.mean.device)
        return self.mean[index] + self.std[index] * noise.to(self.mean)


@torch.no_grad()
def cache_latents(
    prior: DiffusionPrior, images: Float[Tensor, "n h w 3"], *, mirrored: bool
) -> LatentCache:
    """Encode images once; ``mirrored`` adds their mirror images."""
    parts = [images, images.flip(2)] if mirrored else [images]
    posteriors = [
        prior.encode_posterior(chunk.to(prior.device))
        for part in parts
        for chunk in part.split(ENCODED_AT_ONCE)
    ]
    mean, std = (torch.cat([posterior[k] for posterior in posteriors]) for k in (0, 1))
    return LatentCache(mean.float(), std.float(), len(images))


def encode_text(prior: DiffusionPrior, prompts: Sequence[str]) -> TextEmbedding:
    """Embeddings by the encoders as they are now; nothing is cached, gradients reach them.

    Captions that were dropped are empty, and become what sampling leads away from.
    """
    text = prior.silenced(prior.text.encode(prompts).to(prior.device), prompts)
    return text if prior.aesthetics is None else text.with_aesthetic(prior.aesthetics.positive)


def rows_of_batch(count: int, batch_size: int, *, seed: int, batch: int) -> list[int]:
    """Which of ``count`` images batch number ``batch`` takes: whole shuffled rounds, one by one."""
    first = batch * batch_size
    orders: dict[int, list[int]] = {}
    rows = []
    for position in range(first, first + batch_size):
        turn, place = divmod(position, count)
        if turn not in orders:
            # The tag keeps the order apart from the draws inside a batch of the same number.
            generator = batch_generator(seed, (1 << 40) + turn)
            orders[turn] = torch.randperm(count, generator=generator).tolist()
        rows.append(orders[turn][place])
    return rows
