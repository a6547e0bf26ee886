"""What a training changed in the prior beside the subject.

* change: ``E || eps(z_t, c) - eps_base(z_t, c) ||^2 / E || eps_base ||^2`` over the base's own
  pictures of the prompts c, noised to timesteps spread evenly: of class prompts, where a subject
  may take the place of its class, and of unrelated ones;
* accuracy: how often the judge names the colour that a prompt asks for, and the kind where it
  knows it. An untrained prior's own accuracy is the mark to keep.

With consistency guidance the prompts are drawn as guided; the change is that of the adapted
network without guidance, so both variants of a training share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.personalization.subjects import Case
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from studio.evaluation.judge import Judge
from studio.evaluation.priors import requests

__all__ = ["DriftPrompt", "accuracy", "class_prompts", "noised_predictions", "unrelated_prompts"]

SEED = 11
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Fractions of the training length; picture k takes number k mod 5."""


@dataclass(frozen=True)
class DriftPrompt:
    """A prompt without the subject, and what the judge should see."""

    prompt: str
    color: str
    kind: str | None
    """None where the judge does not know the kind."""


def class_prompts(case: Case, count: int) -> list[DriftPrompt]:
    """The class in several colours."""
    colors = [COLOR_NAMES[k % len(COLOR_NAMES)] for k in range(count)]
    one = case.template
    return [
        DriftPrompt(one.replace("{}", f"{color} {case.word}"), color, case.kind) for color in colors
    ]


def unrelated_prompts(case: Case, count: int) -> list[DriftPrompt]:
    """Other toybox objects, from all sides."""
    found = [r for r in requests(2 * count, held_out=False, seed=SEED) if r.spec.kind != case.kind]
    return [DriftPrompt(r.prompt, r.spec.color, r.spec.kind) for r in found[:count]]


def accuracy(
    judge: Judge, images: Float[Tensor, "b h w 3"], prompts: Sequence[DriftPrompt]
) -> float:
    """Share of pictures in which the judge names colour and, where it can, kind."""
    verdicts = judge(images)
    kinds, colors = verdicts.kind.argmax(1).tolist(), verdicts.color.argmax(1).tolist()
    right = [
        COLOR_NAMES[color] == prompt.color and prompt.kind in (None, KIND_NAMES[kind])
        for kind, color, prompt in zip(kinds, colors, prompts, strict=True)
    ]
    return sum(right) / len(right)


@torch.no_grad()
def noised_predictions(
    prior: NoisePrior,
    plain: DiffusionPrior,
    images: Float[Tensor, "b h w 3"],
    prompts: Sequence[str],
) -> Float[Tensor, "b c s s"]:
    """The noise that a prior sees in pictures, at timesteps and with noise that are always equal.

    Args:
        prior: what predicts.
        plain: makes latents of the pictures.
        images: the base's pictures of the prompts.
        prompts: one each.
    """
    latents = plain.encode_images(images.to(plain.device))
    total = plain.num_train_timesteps
    t = torch.tensor([int(TIMES[k % len(TIMES)] * total) for k in range(len(images))])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED))
    t, noise = t.to(latents.device), noise.to(latents)
    alpha, sigma = alpha_sigma(plain.alphas_cumprod, t, latents)
    noisy = add_noise(latents, noise, alpha, sigma)
    output = prior.predict_output(noisy, t, prior.encode_prompt(prompts))
    return prior.to_noise(output, noisy, t)
