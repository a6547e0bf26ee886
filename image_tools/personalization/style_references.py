"""Pictures as style references at every amount of noise (StyleAligned, arXiv 2312.02133, 4.3).

    NoisedReference     z_t = alpha z + sigma eps, with noise of t's own: any timestep
    InvertedReference   DDIM inverted latents: the steps of one sampler

An inverted reference is ``offset`` steps ahead at first, as the authors have it: the sampler's row
begins with the latents of step ``offset``, and after step i it gets those of max(offset, i) + 1.

    reference = inverted_reference(prior, image, "a vase, watercolour", steps=50)
    latents = denoise_latents(..., after_step=reference.after_step)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps, unit_noise
from image_tools.diffusion.step_clock import StepClock
from image_tools.editing.inversion import invert_latents
from image_tools.personalization.style_aligned_configs import StyleInversionConfig
from renderers.errors import StudioError

__all__ = [
    "InvertedReference",
    "NoisedReference",
    "StyleReference",
    "inverted_reference",
    "noised_reference",
]

DRAWS = 1_000_003  # timesteps of a seed have draws of their own


class StyleReference(Protocol):
    """A picture at every amount of noise."""

    prompt: str
    """What it shows, its style included."""

    def at(self, t: Int[Tensor, " k"]) -> Float[Tensor, "k c h w"]:
        """Its latents at these timesteps."""
        ...


@dataclass(frozen=True)
class NoisedReference:
    """A picture with noise added to it; equal timesteps get equal noise."""

    latents: Float[Tensor, "1 c h w"]
    """Clean latents."""
    prompt: str
    alphas_cumprod: Float[Tensor, " steps"]
    seed: int = 0

    def at(self, t: Int[Tensor, " k"]) -> Float[Tensor, "k c h w"]:
        """``alpha z + sigma eps``."""
        generators = [
            torch.Generator().manual_seed(self.seed * DRAWS + step) for step in t.tolist()
        ]
        clean = self.latents.expand(len(t), *self.latents.shape[1:])
        noise = unit_noise(tuple(clean.shape[1:]), generators, clean.device).to(clean)
        alpha, sigma = alpha_sigma(self.alphas_cumprod, t, clean)
        return add_noise(clean, noise, alpha, sigma)


@dataclass(frozen=True)
class InvertedReference:
    """A picture's inverted latents, for a sampler with these steps."""

    path: tuple[Float[Tensor, "1 c h w"], ...]
    """From the clean latents to noise."""
    prompt: str
    timesteps: tuple[int, ...]
    """Of the sampler, falling."""
    offset: int

    @property
    def start(self) -> Float[Tensor, "1 c h w"]:
        """Where the sampler begins."""
        return self._before(0)

    def at(self, t: Int[Tensor, " k"]) -> Float[Tensor, "k c h w"]:
        """What the sampler has in its row at these timesteps, or at the next lower one's."""
        clock = StepClock(self.timesteps)
        return torch.cat([self._before(clock.step(each[None])) for each in t])

    def after_step(self, step: int, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The reference's own latents in the first row, whatever the sampler made of them."""
        return torch.cat([self._before(step + 1).to(latents), latents[1:]])

    def _before(self, step: int) -> Float[Tensor, "1 c h w"]:
        """The latents that a step begins with; the first step alone has those of ``offset``."""
        ahead = self.offset if step == 0 else max(self.offset + 1, step)
        return self.path[::-1][min(ahead, len(self.path) - 1)]


@torch.no_grad()
def noised_reference(
    prior: NoisePrior, image: Float[Tensor, "1 h w 3"], prompt: str, *, seed: int = 0
) -> NoisedReference:
    """A picture as the reference of any batch, such as a guidance rule's.

    Args:
        prior: encodes it.
        image: in 0..1.
        prompt: what it shows, its style included.
        seed: of its noise.
    """
    latents = prior.encode_images(image.to(prior.device))
    return NoisedReference(latents, prompt, prior.alphas_cumprod, seed)


@torch.no_grad()
def inverted_reference(
    prior: NoisePrior,
    image: Float[Tensor, "1 h w 3"],
    prompt: str,
    *,
    steps: int,
    config: StyleInversionConfig | None = None,
) -> InvertedReference:
    """A picture as the reference of a sampler.

    Args:
        prior: encodes and inverts it.
        image: in 0..1.
        prompt: what it shows, its style included.
        steps: of the sampler.
        config: guidance of the inversion, and by how much the reference is ahead.

    Raises:
        StudioError: the reference is ahead of the whole sampler.
    """
    config = config or StyleInversionConfig()
    if config.offset >= steps:
        raise StudioError(
            f"offset is {config.offset} with {steps} steps of the sampler - expected less. Lower "
            "inversion.offset, or take more steps."
        )
    path = invert_latents(
        prior,
        prior.encode_images(image.to(prior.device)),
        prior.encode_prompt([prompt]),
        steps=steps,
        uncond=prior.encode_negative([""]),
        guidance_scale=config.guidance_scale,
    )
    timesteps = tuple(step.t for step in ddim_steps(prior, steps))
    return InvertedReference(tuple(path), prompt, timesteps, config.offset)
