"""Score distillation sampling (DreamFusion, arXiv 2209.14988, Eq. 3).

The gradient on the latents of a render is ``w(t) (eps_guided(z_t) - eps)`` with
``z_t = alpha z + sigma eps``; nothing is differentiated through the denoiser. One denoiser call
serves conditional and unconditional halves, and the VAE decodes only when a preview is asked for.

Deviations: the posterior mean is encoded instead of a draw; the guidance scale is that of
``eps_u + s (eps_c - eps_u)`` (the paper's omega is s - 1); non-finite entries become 0 and are
counted.

    guidance = SDSGuidance(SDSConfig(), prior, prompts)
    output = guidance(comp_rgb, cameras, fraction=0.3, generator=generator)
    output.loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.configs import SDSConfig, Weighting
from guidance.gradient import clip_gradient, gradient_loss, gradient_norm, replace_non_finite
from guidance.prompts import ViewPrompts
from guidance.read_back import read_back_loss
from guidance.schedules import value_at
from guidance.students import weigh_students
from guidance.timesteps import choose_timesteps
from guidance.views import CameraAngles
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.protocol import NoisePrior
from renderers.errors import ShapeError

__all__ = ["SDSGuidance", "sds_gradient", "sds_weight"]


class SDSGuidance(GuidanceRule):
    """Pulls renders towards what the prior makes of the prompt."""

    def __init__(
        self, config: SDSConfig, prior: NoisePrior, prompts: ViewPrompts, *, seed: int = 0
    ) -> None:
        """Guide with ``prior``; the rule trains nothing, so ``seed`` changes nothing."""
        self.config = config
        self.prior = prior
        self.prompts = prompts

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: CameraAngles,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for a batch of renders.

        Args:
            images: renders in 0..1, with gradient.
            cameras: one per render; their angles choose the prompts.
            fraction: where in the stage we are, 0..1.
            generator: source of timesteps and noise.

        Raises:
            ShapeError: if there are not as many cameras as renders.
        """
        if len(cameras.azimuth_deg) != len(images):
            raise ShapeError(
                f"{len(images)} renders came with {len(cameras.azimuth_deg)} cameras. "
                "Give one camera per render."
            )
        latents = self.prior.encode_images(images)
        with torch.no_grad():
            gradient, t, x0 = self._gradient(latents, cameras, fraction, generator)
            gradient, non_finite = replace_non_finite(gradient)
            if self.config.grad_clip is not None:
                gradient = clip_gradient(gradient, value_at(self.config.grad_clip, fraction))
            norm = gradient_norm(gradient)
        read_back = partial(read_back_loss, self.prior, images, latents)
        loss = gradient_loss(latents, gradient)
        return GuidanceOutput(loss, norm, t, non_finite, x0, read_back)

    def _gradient(
        self, latents: Tensor, cameras: CameraAngles, fraction: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
        config, prior = self.config, self.prior
        weigh_students(prior, config.consistency, fraction)
        t = choose_timesteps(
            config.timesteps,
            len(latents),
            num_train_timesteps=prior.alphas_cumprod.shape[0],
            fraction=fraction,
            generator=generator,
        ).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
        noise = noise.to(latents)
        alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
        z_t = add_noise(latents, noise, alpha, sigma)
        scale = value_at(config.guidance_scale, fraction)
        noise_pred = self.prompts.at(cameras).guided_noise(
            prior, z_t, t, scale, rescale=config.guidance_rescale
        )

        def x0() -> Tensor:
            with torch.no_grad():
                return prior.decode_latents(prior.predict_x0(z_t, t, noise_pred))

        return sds_gradient(noise_pred, noise, alpha**2, config.weighting), t, x0


def sds_weight(alpha_bar: Tensor, weighting: Weighting) -> Tensor:
    """``w(t)`` for each ``alpha_bar``."""
    if weighting == "sds":
        return 1.0 - alpha_bar
    if weighting == "uniform":
        return torch.ones_like(alpha_bar)
    return alpha_bar.sqrt() * (1.0 - alpha_bar)


def sds_gradient(
    noise_pred: Tensor, noise: Tensor, alpha_bar: Tensor, weighting: Weighting
) -> Tensor:
    """``w(t) (eps_pred - eps)``; ``alpha_bar`` broadcasts against the noise."""
    return sds_weight(alpha_bar, weighting) * (noise_pred - noise)
