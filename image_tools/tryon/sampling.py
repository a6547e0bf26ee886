"""Portraits from try-on priors, by the sampler of all priors.

IDM-VTON and BootComp came with a ``DDPMScheduler``. With ``eta`` 1 and the settings that
:func:`ddpm_schedule` makes of theirs, the steps are the same, the last one too: it goes to the
clean picture without noise.

    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative([negative])
    images = sample_portraits(prior, cond, uncond, generators=[generator], config=config)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.sampling import AfterStep, ddim_steps, denoise_latents, unit_noise
from image_tools.tryon.extend import TryOnDenoiser, latent_mask

__all__ = ["ddpm_schedule", "kept_outside", "sample_portraits"]


def ddpm_schedule(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a stock scheduler for models that are sampled by DDPM.

    The files of Stable Diffusion say ``set_alpha_to_one: false``. That is for DDIM, whose last step
    then goes to the first timestep's noise and not to none; ``DDPMScheduler`` does not read it.
    """
    return {**scheduler_config, "set_alpha_to_one": True}


@torch.no_grad()
def sample_portraits(
    prior: TryOnDenoiser | WrappedPrior,
    cond: Condition | TextEmbedding,
    uncond: Condition | TextEmbedding,
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
    after_step: AfterStep | None = None,
) -> Float[Tensor, "b h w 3"]:
    """One picture of the denoiser's own size for each generator.

    Args:
        prior: a try-on denoiser, or tools around one.
        cond: what the pictures shall show.
        uncond: what guidance leads away from.
        generators: one for each picture.
        config: number of steps, guidance and eta.
        after_step: changes the latents between steps.
    """
    batch = len(generators)
    shape = (prior.latent_channels, *prior.latent_hw)
    latents = denoise_latents(
        prior,
        unit_noise(shape, generators, prior.device),
        as_condition(cond).expand(batch),
        as_condition(uncond).expand(batch),
        generators=generators,
        config=config,
        after_step=after_step,
    )
    return prior.decode_latents(latents)


@torch.no_grad()
def kept_outside(
    prior: TryOnDenoiser | WrappedPrior,
    pictures: Float[Tensor, "b h w 3"],
    mask: Float[Tensor, "b h w 1"],
    *,
    generators: Sequence[torch.Generator],
    steps: int,
) -> AfterStep:
    """What keeps given pictures outside of a mask while a text-to-image model draws inside.

    After each step the latents outside are the pictures' own, as noisy as the step left the rest
    (arXiv 2201.09865, Eq. 8, without going back).

    Args:
        prior: draws.
        pictures: to be kept.
        mask: 1 where the picture is drawn anew.
        generators: one for each picture, of its own noise.
        steps: of the sampler.
    """
    kept = prior.encode_images(pictures.to(prior.device))
    inside = latent_mask(mask, prior.latent_stride).to(kept)
    noise = unit_noise(tuple(kept.shape[1:]), generators, prior.device).to(kept)
    schedule = [step.alpha_bar_prev for step in ddim_steps(prior, steps)]

    def after(index: int, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        alpha_bar = schedule[index]
        outside = alpha_bar**0.5 * kept + (1.0 - alpha_bar) ** 0.5 * noise
        return torch.lerp(outside, latents, inside)

    return after
