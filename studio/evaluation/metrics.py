"""What the judge and the pixels say about an asset, as numbers.

All functions are pure: verdicts or images of an asset and of its true object in, numbers out. The
views are equally spaced around the object, the first one at its front.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.errors import check_shape
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.objects import ObjectSpec
from studio.evaluation.judge import Verdicts

__all__ = [
    "Janus",
    "PromptAgreement",
    "janus",
    "prompt_agreement",
    "saturation_error",
    "view_consistency",
]

MIN_ROOM = 1e-3
"""Below this the true object looks like a front everywhere, and Janus fronts cannot be seen."""
COVERED = 0.5
"""Pixels covered by more than this belong to the object."""


@dataclass(frozen=True)
class PromptAgreement:
    """In which views the judge names what the prompt names."""

    kind: Bool[Tensor, " views"]
    """Right kind."""
    color: Bool[Tensor, " views"]
    """Right colour."""

    @property
    def both(self) -> Bool[Tensor, " views"]:
        """Right kind and right colour."""
        return self.kind & self.color


def prompt_agreement(verdicts: Verdicts, spec: ObjectSpec) -> PromptAgreement:
    """Compare the judge's first choices with the prompt, view by view."""
    return PromptAgreement(
        kind=verdicts.kind.argmax(1) == KIND_NAMES.index(spec.kind),
        color=verdicts.color.argmax(1) == COLOR_NAMES.index(spec.color),
    )


@dataclass(frozen=True)
class Janus:
    """How many fronts an object has too many."""

    score: float
    """0: fronts only where the true object shows one; 1: a front at every quarter turn."""
    turn_deg: float
    """Quarter turn of the asset against the true object at which it is judged kindest."""


def janus(front: Float[Tensor, " views"], true_front: Float[Tensor, " views"]) -> Janus:
    """Fronts seen where the true object shows none.

    With p_i the judge's probability of "front" at view i of the asset, and q_i the same of the true
    object, the worst Janus object, which repeats its front at every quarter turn, shows
    c_i = max_k q_{i + k n/4}. The score is

        min_s  sum_i min(max(p_{i+s} - q_i, 0), c_i - q_i) / sum_i (c_i - q_i)

    over quarter turns s, so that an object which merely faces another way scores 0. (Smaller turns
    would put the fronts of a four-fronted object on the borders between views and forgive it.) The
    true object scores 0, a second front opposite the first about 1/2, four fronts 1; measured on
    true objects and such made from them: 0.01, 0.5 and 0.97, means over the kinds with a face. An
    object that shows no front at all also scores 0: read it together with the prompt accuracy.

    Args:
        front: of the asset; n views, n a multiple of 4.
        true_front: of the true object (a mean over individuals) from the same cameras.

    Raises:
        ValueError: n is no multiple of 4, or the true object shows a front from all sides.
    """
    check_shape("true_front", true_front, str(len(front)))
    n = len(front)
    if n % 4:
        raise ValueError(f"{n} views - expected a multiple of 4, to have views at quarter turns.")
    quarter_turns = torch.stack([true_front.roll(k * n // 4) for k in range(4)])
    room = quarter_turns.amax(0) - true_front
    if room.sum() < MIN_ROOM:
        raise ValueError("The true object looks alike from all sides; it has no front to count.")
    turned = torch.stack([front.roll(-k * n // 4) for k in range(4)])
    excess = (turned - true_front).clamp(min=0).minimum(room)
    scores = excess.sum(1) / room.sum()
    best = int(scores.argmin())
    return Janus(float(scores[best]), 90.0 * best)


def view_consistency(verdicts: Verdicts) -> float:
    """Whether neighbouring views show the same thing, 0 to 1.

    The mean over neighbouring views of the Bhattacharyya coefficient, sum sqrt(p q), of the judge's
    kinds times that of its colours: 1 when every view reads alike, right or wrong, and 0 when no
    two neighbours have anything in common.
    """
    coefficient = torch.ones(len(verdicts.kind))
    for p in (verdicts.kind, verdicts.color):
        coefficient = coefficient * (p * p.roll(-1, 0)).sqrt().sum(1)
    return float(coefficient.mean())


def chroma(rgb: Float[Tensor, "b h w 3"], mask: Float[Tensor, "b h w"]) -> float:
    """Mean of max(rgb) - min(rgb) over the object's pixels; 0 if there are none."""
    covered = mask > COVERED
    if not covered.any():
        return 0.0
    inside = rgb[covered]
    return float((inside.amax(1) - inside.amin(1)).mean())


def saturation_error(
    rgb: Float[Tensor, "b h w 3"],
    mask: Float[Tensor, "b h w"],
    true_rgb: Float[Tensor, "b h w 3"],
    true_mask: Float[Tensor, "b h w"],
) -> float:
    """Mean chroma of the asset minus that of the true object: positive is over-saturated.

    Images in 0..1 with coverage; the two may have different numbers of views. A mean of it over
    assets tells a bias only; how far colours are off is the mean of its absolute value.
    """
    return chroma(rgb, mask) - chroma(true_rgb, true_mask)
