"""A render's latents with noise at a chosen timestep: the point at which rules ask the denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.configs import TimestepsConfig
from guidance.timesteps import choose_timesteps
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.protocol import NoisePrior

__all__ = ["NoisyLatents", "draw_noisy_latents", "noisy_latents"]


@dataclass(frozen=True)
class NoisyLatents:
    """``z_t = alpha z + sigma eps`` and what it was made of."""

    z_t: Float[Tensor, "b c s s"]
    noise: Float[Tensor, "b c s s"]
    t: Int[Tensor, " b"]
    alpha: Float[Tensor, "b 1 1 1"]
    sigma: Float[Tensor, "b 1 1 1"]


def draw_noisy_latents(
    prior: NoisePrior,
    latents: Float[Tensor, "b c s s"],
    timesteps: TimestepsConfig,
    *,
    fraction: float,
    generator: torch.Generator,
) -> NoisyLatents:
    """Draw timesteps, then noise, and add it.

    Args:
        prior: gives the noise schedule.
        latents: clean latents; no gradient is kept.
        timesteps: how timesteps are chosen.
        fraction: where in the stage we are, 0..1.
        generator: source of both draws.
    """
    t = choose_timesteps(
        timesteps,
        len(latents),
        num_train_timesteps=prior.alphas_cumprod.shape[0],
        fraction=fraction,
        generator=generator,
    )
    return noisy_latents(prior, latents, t, generator=generator)


def noisy_latents(
    prior: NoisePrior,
    latents: Float[Tensor, "b c s s"],
    t: Int[Tensor, " b"],
    *,
    generator: torch.Generator,
) -> NoisyLatents:
    """Draw noise for given timesteps, and add it.

    Args:
        prior: gives the noise schedule.
        latents: clean latents; no gradient is kept.
        t: timestep of each.
        generator: source of the noise.
    """
    latents, t = latents.detach(), t.to(latents.device)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
    return NoisyLatents(add_noise(latents, noise, alpha, sigma), noise, t, alpha, sigma)
