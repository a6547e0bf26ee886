"""Conversions between what denoisers predict, and the one guided combination.

With ``alpha = sqrt(alpha_bar)``, ``sigma = sqrt(1 - alpha_bar)`` and
``z_t = alpha x0 + sigma eps`` (DDPM, arXiv 2006.11239, Eq. 4):

    epsilon       eps
    v_prediction  v = alpha eps - sigma x0       (arXiv 2202.00512, appendix D)
    sample        x0

so ``eps = alpha v + sigma z_t`` and ``x0 = alpha z_t - sigma v``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.errors import UnsupportedModel

__all__ = [
    "PredictionType",
    "add_noise",
    "alpha_sigma",
    "classifier_free_guidance",
    "noise_schedule",
    "noise_to_output",
    "output_to_noise",
    "rescale_guidance",
    "x0_from_noise",
]

PredictionType = Literal["epsilon", "v_prediction", "sample"]

# A schedule with zero terminal signal (arXiv 2305.08891) makes alpha 0, and x0 cannot be had from
# eps. The value keeps alpha at 2^-12, where float32 still resolves x0 to about 1e-3.
MIN_ALPHA_BAR = 2.0**-24
STD_EPS = 1e-8


def noise_schedule(scheduler_config: Mapping[str, Any]) -> Float[Tensor, " steps"]:
    """``alphas_cumprod`` of a stock scheduler's configuration, float32 on the CPU.

    Raises:
        UnsupportedModel: if the configuration has no beta schedule, as flow-matching models, or
            continuous timesteps, as EDM's.
    """
    from diffusers import DDIMScheduler

    is_continuous = scheduler_config.get("timestep_type") == "continuous"
    if is_continuous or "beta_schedule" not in scheduler_config:
        name = scheduler_config.get("_class_name", "unknown")
        lack = "continuous timesteps" if is_continuous else "no beta schedule"
        raise UnsupportedModel(
            f"The scheduler '{name}' has {lack}. Expected a model trained with DDPM noise (Stable "
            "Diffusion 1.x, 2.x, SDXL, pocket); flow-matching models and those of EDM's noise "
            "levels (CosXL, Playground 2.5) do not fit."
        )
    alphas = DDIMScheduler.from_config(dict(scheduler_config)).alphas_cumprod
    return alphas.float().clamp(min=MIN_ALPHA_BAR)


def alpha_sigma(
    alphas_cumprod: Float[Tensor, " steps"], t: Int[Tensor, " batch"], like: Tensor
) -> tuple[Tensor, Tensor]:
    """``alpha`` and ``sigma`` of each sample, shaped to multiply ``like`` [batch, ...]."""
    alpha_bar = alphas_cumprod.to(like.device)[t.to(like.device)]
    alpha_bar = alpha_bar.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
    return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()


def add_noise(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``z_t = alpha x0 + sigma eps``."""
    return alpha * x0 + sigma * noise


def output_to_noise(
    output: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor, kind: PredictionType
) -> Tensor:
    """Epsilon from a denoiser's output of the given kind."""
    if kind == "epsilon":
        return output
    if kind == "v_prediction":
        return alpha * output + sigma * z_t
    return (z_t - alpha * output) / sigma


def noise_to_output(
    noise: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor, kind: PredictionType
) -> Tensor:
    """What a denoiser of the given kind would have put out; the inverse of `output_to_noise`."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return (noise - sigma * z_t) / alpha
    return x0_from_noise(noise, z_t, alpha, sigma)


def x0_from_noise(noise: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents that ``z_t`` and its noise imply: ``(z_t - sigma eps) / alpha``."""
    return (z_t - sigma * noise) / alpha


def classifier_free_guidance(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """``uncond + s (cond - uncond)``, the one guided combination (arXiv 2207.12598)."""
    return uncond + guidance_scale * (cond - uncond)


def rescale_guidance(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """Bring the guided output's standard deviation back to the conditional one's.

    arXiv 2305.08891, Eqs. 15-16, per sample; ``share`` 0 leaves it as it is, 1 rescales fully.
    """
    axes = tuple(range(1, guided.ndim))
    factor = cond.std(dim=axes, keepdim=True) / (guided.std(dim=axes, keepdim=True) + STD_EPS)
    return torch.lerp(guided, guided * factor, share)
