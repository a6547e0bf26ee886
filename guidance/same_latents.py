"""Whether two priors mean the same by a latent and by a timestep, so that they can share them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel

__all__ = ["check_same_latents"]

PROBE_SIZE = 64  # pixels of the image that both encode
TOLERANCE = 0.05  # of the latents' standard deviation; half precision is within 0.01
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
ADVICE = "Use a model with the same image encoder and noise schedule, or leave critic.prior out."


def check_same_latents(prior: DiffusionPrior, other: DiffusionPrior) -> None:
    """Refuse a critic's prior that reads latents or timesteps differently from the stage's.

    Raises:
        UnsupportedModel: naming what differs.
    """
    _check_schedules(prior, other)
    _check_scaling(prior, other)
    expected, found = _probe_latents(prior), _probe_latents(other)
    if expected.shape != found.shape:
        raise UnsupportedModel(
            f"The critic's prior encodes {PROBE_SIZE} px to latents of {list(found.shape[1:])} - "
            f"expected {list(expected.shape[1:])}. {ADVICE}"
        )
    difference = float((expected - found).abs().max() / expected.std())
    if not difference < TOLERANCE:
        raise UnsupportedModel(
            f"The critic's prior encodes images differently, by {difference:.2g} standard "
            f"deviations - expected the same latents as the stage's. {ADVICE}"
        )


def _check_schedules(prior: DiffusionPrior, other: DiffusionPrior) -> None:
    expected, found = prior.alphas_cumprod.cpu(), other.alphas_cumprod.cpu()
    if expected.shape != found.shape or not torch.allclose(expected, found, rtol=1e-3, atol=1e-5):
        raise UnsupportedModel(
            f"The critic's prior has {len(found)} timesteps down to a signal of "
            f"{float(found[-1].sqrt()):.2g} - expected {len(expected)} down to "
            f"{float(expected[-1].sqrt()):.2g}. {ADVICE}"
        )


def _check_scaling(prior: DiffusionPrior, other: DiffusionPrior) -> None:
    for name in SCALING:
        expected, found = prior.vae.config.get(name), other.vae.config.get(name)
        if (expected or None) != (found or None):
            raise UnsupportedModel(
                f"The critic's prior has a {name} of {found} - expected {expected}. {ADVICE}"
            )


@torch.no_grad()
def _probe_latents(prior: DiffusionPrior) -> Float[Tensor, "1 c h w"]:
    """What the image encoder makes of a fixed picture of waves, before scaling."""
    axis = torch.linspace(-1.0, 1.0, PROBE_SIZE)
    waves = [torch.outer(torch.sin(k * axis), torch.cos((4 - k) * axis)) for k in (1, 2, 3)]
    pixels = torch.stack(waves)[None].to(prior.device, prior.vae.dtype)
    return prior.vae.encode(pixels).latent_dist.mean.float().cpu()
