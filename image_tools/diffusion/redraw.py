"""Images redrawn by a prior: noise to some timestep, then denoise (SDEdit, arXiv 2108.01073).

    z_t = alpha z + sigma eps,  then DDIM from t to 0

The steps are the last ``strength x steps`` of DDIM's, rounded to the nearest number (stock
image-to-image pipelines round down). With a strength of 0 the images come back exactly: nothing
goes through the VAE.

    images = redraw_images(prior, renders, noise_at, strength=0.7, generators=[...], config=config)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.parametrization import add_noise
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import DdimStep, ddim_step, ddim_steps, unit_noise

__all__ = ["GuidedNoise", "redraw_images", "redraw_steps"]

GuidedNoise = Callable[[Float[Tensor, "b c s s"], Int[Tensor, " b"]], Float[Tensor, "b c s s"]]
"""From noisy latents and their timesteps to guided epsilon; it knows what each image shows."""


def redraw_steps(prior: DiffusionPrior, *, strength: float, steps: int) -> list[DdimStep]:
    """The DDIM steps that are run: none at strength 0, at least one above, all at 1.

    Raises:
        ValueError: if the strength is no share.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength is {strength}. Keep it from 0 to 1.")
    if strength == 0.0:
        return []
    return ddim_steps(prior, steps)[-max(1, round(strength * steps)) :]


@torch.no_grad()
def redraw_images(
    prior: DiffusionPrior,
    images: Float[Tensor, "b h w 3"],
    guided_noise: GuidedNoise,
    *,
    strength: float,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
) -> Float[Tensor, "b h w 3"]:
    """Redraw images; the result has the prior's size, or is ``images`` where nothing is to do.

    Args:
        prior: encodes, decodes, and knows the schedule.
        images: in 0..1.
        guided_noise: the prediction to follow.
        strength: 0 keeps everything, 1 nothing.
        generators: one for each image, which does not depend on its neighbours in the batch.
        config: number of steps and eta; guidance is ``guided_noise``'s own.

    Raises:
        ValueError: if there are not as many generators as images, or the strength is no share.
    """
    if len(images) != len(generators):
        raise ValueError(
            f"{len(images)} images came with {len(generators)} generators. Give one each."
        )
    steps = redraw_steps(prior, strength=strength, steps=config.steps)
    if not steps:
        return images
    latents = prior.encode_images(images)
    shape = tuple(latents.shape[1:])
    alpha_bar = latents.new_tensor(steps[0].alpha_bar)
    noise = unit_noise(shape, generators, latents.device)
    latents = add_noise(latents, noise, alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())
    for step in steps:
        t = torch.full((len(latents),), step.t, device=latents.device)
        noise_pred = guided_noise(latents, t)
        noise = unit_noise(shape, generators, latents.device) if config.eta > 0.0 else None
        latents = ddim_step(latents, noise_pred, step, eta=config.eta, noise=noise)
    return prior.decode_latents(latents)
