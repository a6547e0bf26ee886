"""Portraits from try-on priors, by the sampler of all priors.

With ``eta`` 1 its steps are those of the ``DDPMScheduler`` that IDM-VTON and BootComp came with.

    cond, uncond = prior.encode_prompt([prompt]), prior.encode_negative([negative])
    images = sample_portraits(prior, cond, uncond, generators=[generator], config=config)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.modified import WrappedPrior
from image_tools.diffusion.sampling import denoise_latents, unit_noise
from image_tools.tryon.extend import TryOnDenoiser

__all__ = ["sample_portraits"]


@torch.no_grad()
def sample_portraits(
    prior: TryOnDenoiser | WrappedPrior,
    cond: Condition | TextEmbedding,
    uncond: Condition | TextEmbedding,
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
) -> Float[Tensor, "b h w 3"]:
    """One picture of the denoiser's own size for each generator.

    Args:
        prior: a try-on denoiser, or tools around one.
        cond: what the pictures shall show.
        uncond: what guidance leads away from.
        generators: one for each picture.
        config: number of steps, guidance and eta.
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
    )
    return prior.decode_latents(latents)
