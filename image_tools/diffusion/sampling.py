"""Images from a prior by DDIM (Song et al., arXiv 2010.02502).

Timesteps, clipping and the final step follow diffusers' ``DDIMScheduler`` for the prior's own
scheduler settings, so images equal those of the stock pipeline with that scheduler. Each image has
its own generator and does not depend on its neighbours in the batch.

    images = sample_images(prior, ["a red mushroom"], generators=[generator], config=DdimConfig())
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.prior import DiffusionPrior

__all__ = [
    "AfterStep",
    "DdimStep",
    "ddim_step",
    "ddim_steps",
    "denoise_latents",
    "sample_images",
    "sample_latents",
    "unit_noise",
]

AfterStep = Callable[[int, Float[Tensor, "batch c h w"]], Float[Tensor, "batch c h w"]]
"""Called with the number of the step, from 0, and its result; returns what goes on."""


@dataclass(frozen=True)
class DdimStep:
    """One step of a sampler: from timestep ``t`` with ``alpha_bar`` to ``alpha_bar_prev``."""

    t: int
    alpha_bar: float
    alpha_bar_prev: float
    clip: float | None
    """Bound on the absolute value of the predicted clean latents, or None."""


def ddim_steps(prior: DiffusionPrior, n_steps: int) -> list[DdimStep]:
    """The steps from noise to image.

    Raises:
        ValueError: if ``n_steps`` is not between 1 and the training length, or so many that the
            first is beyond it.
    """
    from diffusers import DDIMScheduler

    total = prior.num_train_timesteps
    if not 1 <= n_steps <= total:
        raise ValueError(f"steps is {n_steps}. Keep it from 1 to {total}.")
    # Some folders say neither; the stock pipelines put these where DDIM's defaults are for pixels.
    stock = {"clip_sample": False, "steps_offset": 1}
    scheduler = DDIMScheduler.from_config({**stock, **prior.scheduler_config})
    scheduler.set_timesteps(n_steps)
    first = int(scheduler.timesteps[0])
    if first >= total:
        raise ValueError(
            f"steps is {n_steps}, of which the first is at timestep {first}, and this prior's last "
            f"is {total - 1}. Take at most {total - 1} steps."
        )
    alphas = prior.alphas_cumprod.tolist()
    steps = []
    for t in scheduler.timesteps.tolist():
        previous = t - total // n_steps
        alpha_bar_prev = alphas[previous] if previous >= 0 else float(scheduler.final_alpha_cumprod)
        clip = scheduler.config.clip_sample_range if scheduler.config.clip_sample else None
        steps.append(DdimStep(t, alphas[t], alpha_bar_prev, clip))
    return steps


def ddim_step(
    latents: Tensor, noise_pred: Tensor, step: DdimStep, *, eta: float, noise: Tensor | None
) -> Tensor:
    """One step of Eq. 12, with ``noise`` scaled by Eq. 16 where ``eta`` is above 0."""
    alpha_bar, alpha_bar_prev = step.alpha_bar, step.alpha_bar_prev
    x0 = (latents - (1.0 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
    if step.clip is not None:
        x0 = x0.clamp(-step.clip, step.clip)
    variance = (1.0 - alpha_bar_prev) / (1.0 - alpha_bar) * (1.0 - alpha_bar / alpha_bar_prev)
    deviation = eta * variance**0.5
    direction = (1.0 - alpha_bar_prev - deviation**2) ** 0.5 * noise_pred
    previous = alpha_bar_prev**0.5 * x0 + direction
    return previous if noise is None else previous + deviation * noise


def unit_noise(
    shape: tuple[int, ...], generators: Sequence[torch.Generator], device: torch.device
) -> Float[Tensor, "batch ..."]:
    """Gaussian noise with one generator per sample; ``shape`` is that of one sample."""
    draws = [torch.randn((1, *shape), generator=g, device=g.device).to(device) for g in generators]
    return torch.cat(draws)


@torch.no_grad()
def sample_latents(
    prior: DiffusionPrior,
    cond: Condition | TextEmbedding,
    uncond: Condition | TextEmbedding,
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
) -> Float[Tensor, "batch c s s"]:
    """Denoise one latent per generator.

    Raises:
        ValueError: if the conditions have neither one row nor one per generator.
    """
    batch, size = len(generators), prior.latent_size
    shape = (prior.latent_channels, size, size)
    cond, uncond = as_condition(cond).expand(batch), as_condition(uncond).expand(batch)
    latents = unit_noise(shape, generators, prior.device)
    return denoise_latents(prior, latents, cond, uncond, generators=generators, config=config)


@torch.no_grad()
def denoise_latents(
    prior: DiffusionPrior,
    latents: Float[Tensor, "batch c h w"],
    cond: Condition | TextEmbedding,
    uncond: Condition | TextEmbedding,
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
    after_step: AfterStep | None = None,
) -> Float[Tensor, "batch c h w"]:
    """Denoise given latents of the first timestep, all the way.

    Args:
        prior: predicts the noise.
        latents: unit noise, or latents that were inverted.
        cond: what they shall become.
        uncond: what guidance leads away from.
        generators: one for each latent, or for each of a group that is repeated, whose rows then
            get the same noise. Used where eta is above 0 and otherwise left as they are.
        config: number of steps, guidance and eta.
        after_step: changes the latents between steps.
    """
    batch, shape = len(latents), tuple(latents.shape[1:])
    for index, step in enumerate(ddim_steps(prior, config.steps)):
        t = torch.full((batch,), step.t, device=prior.device)
        noise_pred = prior.guided_noise(
            latents, t, cond, uncond, config.guidance_scale, rescale=config.guidance_rescale
        )
        noise = None
        if config.eta > 0.0:
            noise = unit_noise(shape, generators, prior.device)
            noise = noise.repeat(batch // len(generators), 1, 1, 1)
        latents = ddim_step(latents, noise_pred, step, eta=config.eta, noise=noise)
        if after_step is not None:
            latents = after_step(index, latents)
    return latents


@torch.no_grad()
def sample_images(
    prior: DiffusionPrior,
    prompts: Sequence[str],
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig | None = None,
    negative_prompt: str = "",
) -> Float[Tensor, "batch h w 3"]:
    """One image in 0..1 per prompt and generator.

    Raises:
        ValueError: if there are not as many generators as prompts.
    """
    if len(prompts) != len(generators):
        raise ValueError(
            f"{len(prompts)} prompts came with {len(generators)} generators. Give one each."
        )
    cond, uncond = prior.encode_prompt(prompts), prior.encode_negative([negative_prompt])
    latents = sample_latents(
        prior, cond, uncond, generators=generators, config=config or DdimConfig()
    )
    return prior.decode_latents(latents)
