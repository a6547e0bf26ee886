"""View-dependent prompts: which text guides which view.

Text is encoded once, when the prompts are built; per step there is only a choice of rows. Kinds:
one prompt for all views, one per direction (side, front, back, overhead, DreamFusion section 3.2),
embeddings interpolated by azimuth, and Perp-Neg with the other views as negatives.

    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "a duck", "blurry")
    condition = prompts.at(cameras)
    noise_pred = condition.guided_noise(prior, latents, t, 7.5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.configs import (
    DirectionalPromptsConfig,
    InterpolatedPromptsConfig,
    PerpNegPromptsConfig,
    PlainPromptsConfig,
    RelationPromptsConfig,
    ViewPromptsConfig,
    ViewWordsConfig,
)
from guidance.perp_neg import PerpNegCondition, perp_neg_mix
from guidance.views import (
    OVERHEAD,
    VIEWS,
    CameraAngles,
    azimuth_mix,
    direction_index,
    sided_row,
)
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.protocol import NoisePrior

__all__ = [
    "DirectionalPrompts",
    "InterpolatedPrompts",
    "PerpNegPrompts",
    "PlainPrompts",
    "ViewCondition",
    "ViewPrompts",
    "build_view_prompts",
    "view_texts",
]


@dataclass(frozen=True)
class ViewCondition:
    """Text of a batch of views, guided classifier-free."""

    positive: TextEmbedding
    """One row per view, which it knows."""
    uncond: TextEmbedding
    """The negative prompt, one row for all views."""

    def guided_noise(
        self,
        prior: NoisePrior,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Guided epsilon from one denoiser call of 2 b rows."""
        return prior.guided_noise(
            latents, t, self.positive, self.uncond, guidance_scale, rescale=rescale
        )


@runtime_checkable
class ViewPrompts(Protocol):
    """Prompts that know what to say about each view."""

    prompt: str
    """The scene's prompt, for what reads it without a view: critics, second priors."""

    def at(self, cameras: CameraAngles) -> ViewCondition | PerpNegCondition:
        """Text for the views of ``cameras``, on the prior's device."""
        ...


@dataclass(frozen=True)
class PlainPrompts:
    """The same text for every view."""

    text: TextEmbedding
    uncond: TextEmbedding
    prompt: str

    def at(self, cameras: CameraAngles) -> ViewCondition:
        """The one prompt, repeated."""
        text = self.text.expand(len(cameras.azimuth_deg))
        return ViewCondition(text.seen_from(cameras.azimuth_deg), self.uncond)


@dataclass(frozen=True)
class DirectionalPrompts:
    """One text per direction; ``views`` has the rows of :func:`view_texts`."""

    config: DirectionalPromptsConfig
    views: TextEmbedding
    uncond: TextEmbedding
    prompt: str

    def at(self, cameras: CameraAngles) -> ViewCondition:
        """The prompt of each view's direction."""
        rows = direction_index(cameras.azimuth_deg, cameras.elevation_deg, self.config)
        rows = sided_row(rows, cameras.azimuth_deg)
        text = self.views.select(rows).seen_from(cameras.azimuth_deg)
        return ViewCondition(text, self.uncond)


@dataclass(frozen=True)
class InterpolatedPrompts:
    """Texts mixed by azimuth; ``views`` has the rows of :func:`view_texts`."""

    config: InterpolatedPromptsConfig
    views: TextEmbedding
    uncond: TextEmbedding
    prompt: str

    def at(self, cameras: CameraAngles) -> ViewCondition:
        """The mix of the two nearest directions, or the overhead prompt."""
        mix = azimuth_mix(cameras.azimuth_deg)
        is_overhead = cameras.elevation_deg > self.config.overhead_deg
        near, far = (
            self.views.select(
                sided_row(index.masked_fill(is_overhead, OVERHEAD), cameras.azimuth_deg)
            )
            for index in (mix.near, mix.far)
        )
        text = far.lerp(near, mix.closeness).seen_from(cameras.azimuth_deg)
        return ViewCondition(text, self.uncond)


@dataclass(frozen=True)
class PerpNegPrompts:
    """Texts mixed by azimuth with the other views as negatives; rows of :func:`view_texts`."""

    config: PerpNegPromptsConfig
    views: TextEmbedding
    uncond: TextEmbedding
    prompt: str

    def at(self, cameras: CameraAngles) -> PerpNegCondition:
        """Positive mix, negatives and weights of each view."""
        mix = perp_neg_mix(cameras.azimuth_deg, cameras.elevation_deg, self.config)
        azimuth = cameras.azimuth_deg
        near, far = (self.views.select(sided_row(i, azimuth)) for i in (mix.near, mix.far))
        negatives = sided_row(mix.negatives, azimuth[:, None])
        return PerpNegCondition(
            positive=far.lerp(near, mix.closeness).seen_from(azimuth),
            uncond=self.uncond,
            negatives=self.views.select(negatives.flatten()),
            weights=mix.weights.to(self.views.tokens.device),
        )


def view_texts(
    words: ViewWordsConfig, prompt: str, by_view: Mapping[str, str] | None = None
) -> list[str]:
    """The prompt of each direction in the order of ``VIEWS``, for the left half, then the right.

    The halves differ in the wording of the side, where the words tell left from right.

    Args:
        words: templates.
        prompt: stands in them.
        by_view: prompts that replace it for some of ``VIEWS``.
    """
    prompts = dict.fromkeys(VIEWS, prompt) | dict(by_view or {})
    halves = ({"side": words.left or words.side}, {"side": words.right or words.side})
    return [
        (half.get(view) or getattr(words, view)).replace("{prompt}", prompts[view])
        for half in halves
        for view in VIEWS
    ]


@torch.no_grad()
def build_view_prompts(
    config: ViewPromptsConfig,
    prior: NoisePrior,
    prompt: str,
    negative_prompt: str = "",
    *,
    by_view: Mapping[str, str] | None = None,
) -> ViewPrompts:
    """Encode a scene's prompts for all views.

    Args:
        config: the kind of view dependence; of relations, that of one object alone.
        prior: encodes the text.
        prompt: what to make.
        negative_prompt: what to avoid; empty for the prior's plain unconditional prediction.
        by_view: prompts that replace ``prompt`` for some of ``VIEWS`` (``guidance.debiasing``).
    """
    uncond = prior.encode_negative([negative_prompt])
    if isinstance(config, RelationPromptsConfig):
        config = config.objects
    if isinstance(config, PlainPromptsConfig):
        return PlainPrompts(prior.encode_prompt([prompt]), uncond, prompt)
    views = prior.encode_prompt(view_texts(config.words, prompt, by_view))
    if isinstance(config, DirectionalPromptsConfig):
        return DirectionalPrompts(config, views, uncond, prompt)
    if isinstance(config, InterpolatedPromptsConfig):
        return InterpolatedPrompts(config, views, uncond, prompt)
    return PerpNegPrompts(config, views, uncond, prompt)
