"""DREAM (arXiv 2312.00210): a denoiser learns from the noise that it would leave itself.

What is trained sees true noisy pictures; what samples sees its own errors. So the noise of each
sample is moved away from the prediction that a first pass without gradients makes of it,

    delta = lambda_t (eps - eps_hat),   lambda_t = sigma_t^p
    z_t <- z_t + sigma_t delta,   eps <- eps + delta

before the loss is taken. At high noise nearly the whole error comes in, at low noise almost nothing
does. CatVTON is trained so (arXiv 2407.15886, section 3.3).

    noisy = rectified(tool, denoiser, noisy, condition, power=10.0)
    losses = denoising_errors(tool, noisy, condition)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.parametrization import alpha_sigma
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.personalization.denoising import NoisyBatch

__all__ = ["rectified"]


@torch.no_grad()
def rectified(
    prior: NoisePrior,
    denoiser: DiffusionPrior,
    noisy: NoisyBatch,
    condition: Condition,
    *,
    power: float,
) -> NoisyBatch:
    """A batch whose noise is moved away from a prediction of it.

    Args:
        prior: predicts.
        denoiser: the prior's own, which knows schedule and parametrisation.
        noisy: the batch as it was drawn.
        condition: what the prior is told.
        power: p, 0 or more; higher moves less.
    """
    alpha, sigma = alpha_sigma(denoiser.alphas_cumprod, noisy.t, noisy.z_t)
    own = denoiser.to_noise(noisy.target, noisy.z_t, noisy.t)
    predicted = prior.predict_noise(noisy.z_t, noisy.t, condition)
    delta = sigma**power * (own - predicted)
    # The clean latents stay, so a target of them does, too.
    shares = {"epsilon": 1.0, "v_prediction": alpha, "sample": 0.0}
    moved = shares[denoiser.prediction_type] * delta
    return replace(noisy, z_t=noisy.z_t + sigma * delta, target=noisy.target + moved)
