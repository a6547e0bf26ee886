"""The denoising loss of personalization trainers, sample by sample, in the prior's own terms.

    l = mean_chw || f_theta(z_t; y, t) - target ||^2,   z_t = alpha x0 + sigma eps

with the noise as the target of an epsilon model and ``v = alpha eps - sigma x0`` of a v model.
Min-SNR weights (arXiv 2303.09556, section 3.4): ``min(snr, gamma) / snr`` for epsilon, the same
over ``snr + 1`` for v, where ``snr = alpha^2 / sigma^2`` of each row's own timestep. (A widely used
script mixes up the timesteps of the two halves of a batch with prior preservation.)

    noisy = draw_noisy(prior, latents, generator)
    losses = denoising_errors(prior, noisy, text) * min_snr_weights(prior, noisy.t, 5.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.prior import DiffusionPrior

__all__ = ["NoisyBatch", "denoising_errors", "draw_noisy", "min_snr_weights"]


@dataclass(frozen=True)
class NoisyBatch:
    """Noisy latents and what the denoiser should make of them."""

    z_t: Float[Tensor, "b c s s"]
    t: Int[Tensor, " b"]
    target: Float[Tensor, "b c s s"]
    """In the denoiser's own parametrisation."""


def draw_noisy(
    prior: DiffusionPrior,
    latents: Float[Tensor, "b c s s"],
    generator: torch.Generator,
    *,
    offset_noise: float = 0.0,
) -> NoisyBatch:
    """Add noise at timesteps drawn uniformly.

    Args:
        prior: knows the schedule and the parametrisation.
        latents: clean latents.
        generator: source of timesteps and noise.
        offset_noise: standard deviation of a constant added to each channel's noise, which lets a
            model learn very bright and very dark images; 0 for none.
    """
    batch = len(latents)
    t = torch.randint(prior.num_train_timesteps, (batch,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    if offset_noise:
        noise = noise + offset_noise * torch.randn(*latents.shape[:2], 1, 1, generator=generator)
    t, noise = t.to(latents.device), noise.to(latents)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
    targets = {
        "epsilon": noise,
        "v_prediction": alpha * noise - sigma * latents,
        "sample": latents,
    }
    return NoisyBatch(add_noise(latents, noise, alpha, sigma), t, targets[prior.prediction_type])


def denoising_errors(
    prior: DiffusionPrior, noisy: NoisyBatch, text: TextEmbedding
) -> Float[Tensor, " b"]:
    """Mean squared error of each sample."""
    output = prior.predict_output(noisy.z_t, noisy.t, text)
    return (output.float() - noisy.target.float()).square().flatten(1).mean(dim=1)


def min_snr_weights(
    prior: DiffusionPrior, t: Int[Tensor, " b"], gamma: float | None
) -> Float[Tensor, " b"]:
    """Weight of each sample's squared error; ones where ``gamma`` is None."""
    alpha_bar = prior.alphas_cumprod.to(t.device)[t]
    if gamma is None:
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1.0 - alpha_bar)
    # Each is the weight min(snr, gamma) of the squared error in x0, in other parametrisations.
    x0_weight = snr.clamp(max=gamma)
    divisors = {"epsilon": snr, "v_prediction": snr + 1.0, "sample": torch.ones_like(snr)}
    return x0_weight / divisors[prior.prediction_type]
