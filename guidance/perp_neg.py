"""Perp-Neg (arXiv 2304.04968): negatives act only where they do not oppose the prompt.

    e_i = eps_i - eps_u,   e_i^perp = e_i - <e_i, e_pos> / |e_pos|^2 e_pos
    eps = eps_u + s (e_pos + sum_i w_i e_i^perp)

Each view has its own negatives and weights, laid out view by view, so a batch equals its rows. (A
widely used implementation tiles the latents batch by batch and mixes views up.) The projection
scales with its input, so combining v-predictions equals combining epsilons.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.configs import PerpNegPromptsConfig
from guidance.views import FRONT, OVERHEAD, SIDE, azimuth_mix
from image_tools.diffusion.conditions import Condition, TextEmbedding, cat_embeddings
from image_tools.diffusion.parametrization import rescale_guidance
from image_tools.diffusion.protocol import NoisePrior

__all__ = [
    "PerpNegCondition",
    "PerpNegMix",
    "decay",
    "perp_neg_combination",
    "perp_neg_mix",
    "perpendicular",
]

# Below this squared length the prompt has no direction, and nothing is projected out.
MIN_SQUARED_NORM = 1e-20


@dataclass(frozen=True)
class PerpNegMix:
    """Positive and negative prompts of each view, as indices into ``guidance.views.VIEWS``."""

    near: Int[Tensor, " b"]
    far: Int[Tensor, " b"]
    closeness: Float[Tensor, " b"]
    """The positive prompt is ``far + closeness (near - far)``."""
    negatives: Int[Tensor, "b n"]
    weights: Float[Tensor, "b n"]
    """Weight of each negative, 0 or below for the published decays up to rounding."""


def decay(abc: tuple[float, float, float], r: Tensor) -> Tensor:
    """The shifted exponential decay ``a exp(-b r) + c``."""
    a, b, c = abc
    return a * torch.exp(-b * r) + c


def perp_neg_mix(
    azimuth_deg: Float[Tensor, " b"],
    elevation_deg: Float[Tensor, " b"],
    config: PerpNegPromptsConfig,
) -> PerpNegMix:
    """Prompts and negative weights of each view, by its azimuth."""
    mix = azimuth_mix(azimuth_deg)
    r, is_front_half = mix.closeness, mix.near == FRONT
    side, front = torch.full_like(mix.near, SIDE), torch.full_like(mix.near, FRONT)
    front_half = torch.stack(
        [-decay(config.front_side, r), -decay(config.side_front, 1.0 - r)], dim=1
    )
    back_half = torch.stack([-decay(config.side_back, r), -decay(config.side_back_front, r)], dim=1)
    first = torch.where(is_front_half, front, side)
    second = torch.where(is_front_half, side, front)
    is_overhead = elevation_deg > config.overhead_deg
    weights = torch.where(is_front_half[:, None], front_half, back_half)
    return PerpNegMix(
        near=mix.near.masked_fill(is_overhead, OVERHEAD),
        far=mix.far.masked_fill(is_overhead, OVERHEAD),
        closeness=r,
        negatives=torch.stack([first, second], dim=1),
        weights=weights.masked_fill(is_overhead[:, None], 0.0),
    )


def perpendicular(delta: Float[Tensor, "b n ..."], onto: Float[Tensor, "b ..."]) -> Tensor:
    """Each of the ``n`` deltas without its component along ``onto``, sample by sample."""
    flat, direction = delta.flatten(2), onto.flatten(1)[:, None]
    squared = direction.square().sum(dim=2, keepdim=True)
    along = (flat * direction).sum(dim=2, keepdim=True) / squared.clamp(min=MIN_SQUARED_NORM)
    return (flat - along * direction).reshape(delta.shape)


def perp_neg_combination(
    uncond: Float[Tensor, "b ..."],
    positive: Float[Tensor, "b ..."],
    negatives: Float[Tensor, "b n ..."],
    weights: Float[Tensor, "b n"],
    guidance_scale: float,
) -> Float[Tensor, "b ..."]:
    """``eps_u + s (e_pos + sum_i w_i e_i^perp)``."""
    e_pos = positive - uncond
    e_perp = perpendicular(negatives - uncond[:, None], e_pos)
    weights = weights.to(e_perp).reshape(*weights.shape, *[1] * (e_perp.ndim - 2))
    return uncond + guidance_scale * (e_pos + (weights * e_perp).sum(dim=1))


@dataclass(frozen=True)
class PerpNegCondition:
    """Text of a batch of views with weighted negatives."""

    positive: TextEmbedding
    """One row per view."""
    uncond: TextEmbedding
    """The negative prompt, one row for all views."""
    negatives: TextEmbedding
    """n rows per view: those of the first view, then those of the second, and so on."""
    weights: Float[Tensor, "b n"]
    """Weight of each negative."""

    def guided_noise(
        self,
        prior: NoisePrior,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Guided epsilon from one denoiser call of (2 + n) b rows."""
        batch, n = self.weights.shape
        positive = self.positive.expand(batch)
        rows = [self.uncond.expand(batch), positive, self.negatives]
        if (views := positive.azimuth_deg) is not None:
            each = (views, views, views.repeat_interleave(n))
            rows = [text.seen_from(azimuth) for text, azimuth in zip(rows, each, strict=True)]
        per_negative = latents.repeat_interleave(n, dim=0)
        output = prior.predict_output(
            torch.cat([latents, latents, per_negative]),
            torch.cat([t, t, t.repeat_interleave(n)]),
            Condition(
                cat_embeddings(rows), roles=("uncond",) * batch + ("cond",) * (1 + n) * batch
            ),
        )
        out_uncond, out_positive, out_negatives = output.split([batch, batch, batch * n])
        out_negatives = out_negatives.reshape(batch, n, *latents.shape[1:])
        guided = perp_neg_combination(
            out_uncond, out_positive, out_negatives, self.weights, guidance_scale
        )
        if rescale > 0.0:
            guided = rescale_guidance(guided, out_positive, rescale)
        return prior.to_noise(guided, latents, t)
