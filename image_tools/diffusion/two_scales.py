"""Guidance by a text and by something that is shown, each with a scale of its own.

    eps = eps(0, 0) + s_s (eps(shown, 0) - eps(0, 0)) + s_t (eps(shown, text) - eps(shown, 0))

is InstructPix2Pix's (arXiv 2211.09800, Eq. 3), where an image is shown, and BootComp's (arXiv
2412.16978), where garments are. It holds for every pair of scales; a term that counts nothing is
not computed.

    noise_pred = two_scale_noise(prior, latents, t, branches, GuidanceScales(7.5, 1.5))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import Condition, cat_conditions
from image_tools.diffusion.parametrization import rescale_guidance
from image_tools.diffusion.protocol import NoisePrior

__all__ = ["GuidanceScales", "TwoScaleBranches", "two_scale_noise"]


@dataclass(frozen=True)
class TwoScaleBranches:
    """Conditions of the three predictions, each with all rows."""

    none: Condition
    """Neither."""
    shown: Condition
    """What is shown, without text."""
    both: Condition
    """What is shown, and the text."""


@dataclass(frozen=True)
class GuidanceScales:
    """How much each counts."""

    text: float
    shown: float


def two_scale_noise(
    prior: NoisePrior,
    latents: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    branches: TwoScaleBranches,
    scales: GuidanceScales,
    *,
    rescale: float = 0.0,
) -> Float[Tensor, "b c h w"]:
    """Epsilon after guidance, from one denoiser call.

    Args:
        prior: predicts.
        latents: noisy ones.
        t: timesteps.
        branches: conditions.
        scales: of the guidance.
        rescale: share of the standard-deviation rescale; it compares with the prediction for both.
    """
    factors = {
        "both": scales.text,
        "shown": scales.shown - scales.text,
        "none": 1.0 - scales.shown,
    }
    needed = [
        name
        for name, factor in factors.items()
        if factor != 0.0 or (name == "both" and rescale > 0.0)
    ]
    count = len(needed)
    output = prior.predict_output(
        torch.cat([latents] * count),
        torch.cat([t] * count),
        cat_conditions([getattr(branches, name) for name in needed]),
    )
    outputs = dict(zip(needed, output.chunk(count), strict=True))
    guided = _combine(outputs, factors, scales)
    if rescale > 0.0:
        guided = rescale_guidance(guided, outputs["both"], rescale)
    return prior.to_noise(guided, latents, t)


def _combine(
    outputs: dict[str, Tensor], factors: dict[str, float], scales: GuidanceScales
) -> Tensor:
    """The guided output from the predictions that count; what is missing has a factor of zero."""
    if len(outputs) == 3:
        none, shown, both = outputs["none"], outputs["shown"], outputs["both"]
        return none + scales.shown * (shown - none) + scales.text * (both - shown)
    if len(outputs) == 1:
        (only,) = outputs.values()
        return only
    low = "none" if "none" in outputs else "shown"
    high = "both" if "both" in outputs else "shown"
    return outputs[low] + factors[high] * (outputs[high] - outputs[low])
