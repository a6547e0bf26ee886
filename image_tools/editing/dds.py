"""Delta denoising score (Hertz et al., arXiv 2304.07090, Eq. 3): edits without noise of their own.

The gradient of score distillation on an image that already fits its prompt is an error of the
prior; the same error acts on an edited copy of it. Their difference edits, and nothing else:

    g = eps_guided(alpha z_target + sigma eps; t, y_target)
      - eps_guided(alpha z_source + sigma eps; t, y_source),        same eps and t, w(t) = 1

A pure function of latents: on images here, on renders of two scenes in 3D. Where both latents and
both prompts are equal, it is exactly 0.

    g = delta_denoising_gradient(prior, target, source, t=t, noise=noise, guidance_scale=7.5)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import (
    Condition,
    TextEmbedding,
    as_condition,
    cat_conditions,
)
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.protocol import NoisePrior
from image_tools.editing.editing_configs import DeltaDenoisingConfig
from renderers.errors import ShapeError

__all__ = [
    "DeltaBranch",
    "delta_denoising_gradient",
    "edit_latents",
    "shared_delta_denoising_gradient",
]


@dataclass(frozen=True)
class DeltaBranch:
    """The source or the target: latents and what they are told."""

    latents: Float[Tensor, "b c h w"]
    cond: Condition | TextEmbedding
    uncond: Condition | TextEmbedding


@torch.no_grad()
def delta_denoising_gradient(
    prior: NoisePrior,
    target: DeltaBranch,
    source: DeltaBranch,
    *,
    t: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    guidance_scale: float,
) -> Float[Tensor, "b c h w"]:
    """g for the target's latents.

    Args:
        prior: predicts the noise.
        target: what is edited.
        source: what it was made from.
        t: timesteps of both.
        noise: of both.
        guidance_scale: of both.

    Raises:
        ShapeError: if latents and noise differ in shape.
    """
    _check_shapes(target, source, noise)
    # Two calls of one shape, not one of twice the rows: rows of a batch may round differently.
    predictions = [
        prior.guided_noise(
            _noisy(prior, branch, t, noise), t, branch.cond, branch.uncond, guidance_scale
        )
        for branch in (target, source)
    ]
    return predictions[0] - predictions[1]


@torch.no_grad()
def shared_delta_denoising_gradient(
    prior: NoisePrior,
    target: DeltaBranch,
    source: DeltaBranch,
    *,
    t: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    guidance_scale: float,
) -> Float[Tensor, "b c h w"]:
    """The same by one call for [source, target], as priors that share attention want it."""
    _check_shapes(target, source, noise)
    rows = len(noise)
    branches = (source, target)
    latents = torch.cat([_noisy(prior, branch, t, noise) for branch in branches])
    cond, uncond = (
        cat_conditions([as_condition(getattr(b, name)).expand(rows) for b in branches])
        for name in ("cond", "uncond")
    )
    both = prior.guided_noise(latents, torch.cat([t, t]), cond, uncond, guidance_scale)
    return both[rows:] - both[:rows]


def edit_latents(
    prior: NoisePrior,
    target: DeltaBranch,
    source: DeltaBranch,
    *,
    generator: torch.Generator,
    config: DeltaDenoisingConfig | None = None,
) -> Float[Tensor, "b c h w"]:
    """Edit an image's latents by gradient descent.

    Args:
        prior: predicts the noise.
        target: where to begin, usually the source's latents, and the edited prompt.
        source: the image and its prompt.
        generator: of timesteps and noise.
        config: number and size of updates.
    """
    config = config or DeltaDenoisingConfig()
    latents, total = target.latents, prior.alphas_cumprod.shape[0]
    low, high = (round(share * total) for share in config.t_range)
    rate = config.step_size(tuple(latents.shape[-2:]))
    for _ in range(config.updates):
        drawn = torch.randint(low, max(high, low + 1), (1,), generator=generator)
        t = drawn.expand(len(latents)).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        gradient = delta_denoising_gradient(
            prior,
            DeltaBranch(latents, target.cond, target.uncond),
            source,
            t=t,
            noise=noise,
            guidance_scale=config.guidance_scale,
        )
        latents = latents - rate * gradient
    return latents


def _noisy(prior: NoisePrior, branch: DeltaBranch, t: Tensor, noise: Tensor) -> Tensor:
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, branch.latents)
    return add_noise(branch.latents, noise, alpha, sigma)


def _check_shapes(target: DeltaBranch, source: DeltaBranch, noise: Tensor) -> None:
    shapes = [tuple(x.shape) for x in (target.latents, source.latents, noise)]
    if len(set(shapes)) != 1:
        raise ShapeError(
            f"Latents of target and source and the noise have shapes {shapes}, expected one and "
            "the same. Render or encode both at one size."
        )
