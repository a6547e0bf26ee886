"""Pairs of images for InstructPix2Pix, made by a prior with shared attention (section 3.1.2).

Both captions are drawn from the same noise, and for the first share p of the steps the second image
has the attention of the first: among pixels in both halves of guidance, as the authors' code has it
(:mod:`image_tools.editing.pixel_sharing`), or among pixels and to words in the conditional half, as
their paper says (Prompt-to-Prompt). Each sample draws its own p and guidance scale.
Then a scorer that has images and texts in one space filters (StyleGAN-NADA's direction):

    direction = cos(f(x_1) - f(x_0), f(c_1) - f(c_0))

The scorer is given: CLIP for photographs, or whatever else knows the images.

Deviation: DDIM without added noise in the place of Euler's ancestral sampler.

    drawn = draw_pairs(prior, "a red duck", "a blue duck", config, seed=0)
    scores = score_pairs(scorer, drawn, "a red duck", "a blue duck")
    images = drawn[kept_pairs(scores, PairFilterConfig())]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.protocol import NoisePrior
from image_tools.editing.edit_training_configs import PairFilterConfig, PairGenerationConfig
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.pixel_sharing import PixelSharingPrior
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior, edit_images
from image_tools.personalization.loop import batch_generator

__all__ = [
    "PairDraw",
    "PairScorer",
    "PairScores",
    "draw_pairs",
    "drawn_settings",
    "kept_pairs",
    "score_pairs",
]


@dataclass(frozen=True)
class PairDraw:
    """What a pair draws for itself."""

    shared: float
    """p, the share of the steps in which attention is shared."""
    guidance_scale: float


class PairScorer(Protocol):
    """A space that images and their captions share."""

    def embed_images(self, images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n d"]:
        """Images in 0..1 as vectors of any length."""
        ...

    def embed_texts(self, texts: list[str]) -> Float[Tensor, "n d"]:
        """Captions likewise."""
        ...


@dataclass(frozen=True)
class PairScores:
    """Cosines of each pair."""

    image: Float[Tensor, " n"]
    """The two images."""
    before: Float[Tensor, " n"]
    """The first image and its caption."""
    after: Float[Tensor, " n"]
    """The second image and its caption."""
    direction: Float[Tensor, " n"]
    """The change of the images and that of the captions."""


@torch.no_grad()
def draw_pairs(
    prior: NoisePrior, before: str, after: str, config: PairGenerationConfig, *, seed: int
) -> Float[Tensor, "n 2 h w 3"]:
    """``config.samples`` pairs of two captions' images; pair k depends on the seed and k alone."""
    pairs = []
    for k in range(config.samples):
        generator = batch_generator(seed, k)
        drawn = _draw(config, generator)
        if config.sharing == "pixels":
            sharing = PixelSharingPrior(
                prior, before, after, shared=drawn.shared, steps=config.steps
            )
        else:
            steps = (0.0, drawn.shared)
            edit = EditedPromptConfig(after, cross_steps=steps, self_steps=steps)
            sharing = PromptToPromptPrior(
                prior, PromptToPromptConfig(before, (edit,), steps=config.steps)
            )
        ddim = DdimConfig(steps=config.steps, guidance_scale=drawn.guidance_scale)
        images = edit_images(sharing, generators=[generator], config=ddim)
        pairs.append(images[:, 0].cpu())
    return torch.stack(pairs)


def drawn_settings(config: PairGenerationConfig, number: int, *, seed: int) -> PairDraw:
    """What ``draw_pairs`` drew for pair ``number``."""
    return _draw(config, batch_generator(seed, number))


def score_pairs(
    scorer: PairScorer, pairs: Float[Tensor, "n 2 h w 3"], before: str, after: str
) -> PairScores:
    """Similarities of pairs that share their captions."""
    first, second = (F.normalize(scorer.embed_images(images), dim=1) for images in pairs.unbind(1))
    source, target = F.normalize(scorer.embed_texts([before, after]), dim=1)[:, None]
    return PairScores(
        image=(first * second).sum(1),
        before=(first * source).sum(1),
        after=(second * target).sum(1),
        direction=F.cosine_similarity(second - first, target - source, dim=1),
    )


def kept_pairs(scores: PairScores, config: PairFilterConfig) -> Int[Tensor, " kept"]:
    """Which pairs pass, those with the best direction first."""
    passes = (
        (scores.image >= config.image)
        & (scores.before >= config.text)
        & (scores.after >= config.text)
        & (scores.direction >= config.direction)
    )
    order = scores.direction.argsort(descending=True, stable=True)
    return order[passes[order]][: config.keep]


def _draw(config: PairGenerationConfig, generator: torch.Generator) -> PairDraw:
    draws = torch.rand(2, generator=generator).tolist()
    (low, high), (weak, strong) = config.shared, config.guidance_scale
    return PairDraw(low + (high - low) * draws[0], weak + (strong - weak) * draws[1])
