"""Guidance by a multi-view prior: all sides of an object judged together (MVDream, 2308.16512).

Renders come in sets of views, as cameras of kind multiview draw them. One timestep serves the whole
batch. With eps the guided prediction and x0 the clean latents it implies,

    x0_reconstruction   g = z - x0',  x0' = lerp(x0, x0 std(x0_cond) / std(x0), phi)     (Eq. 4)
    sds                 g = w(t) (eps - eps_true)

where std is over all views of a set together. Without the rescale (phi = 0) the first one is SDS
with the weight sigma / alpha. Its loss is 1/2 |z - sg(x0')|^2 / B, B the number of views.

Deviations: the posterior mean is encoded instead of a draw.

    guidance = MultiViewGuidance(MultiViewConfig(), prior, prompts)
    output = guidance(images, cameras, fraction=0.3, generator=generator)
    output.loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.gradient import clip_gradient, gradient_loss, gradient_norm, replace_non_finite
from guidance.multiview_configs import MultiViewConfig, X0ReconstructionConfig
from guidance.noising import NoisyLatents, draw_noisy_latents
from guidance.prompts import ViewPrompts
from guidance.read_back import read_back_loss
from guidance.schedules import value_at
from guidance.sds import sds_gradient
from image_tools.diffusion.camera_embedding import camera_vector
from image_tools.diffusion.conditions import Condition, cat_conditions
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.errors import UnsupportedModel
from renderers.cameras import Cameras
from renderers.errors import ShapeError

__all__ = ["MultiViewGuidance", "rescale_sets"]

STD_EPS = 1e-8
SAME_DEG = 1e-3


class MultiViewGuidance(GuidanceRule):
    """Pulls sets of renders towards what the prior makes of the prompt, all views at once."""

    prior: MultiViewPrior

    def __init__(
        self, config: MultiViewConfig, prior: MultiViewPrior, prompts: ViewPrompts, *, seed: int = 0
    ) -> None:
        """Guide with ``prior``; the rule trains nothing, so ``seed`` changes nothing.

        Raises:
            UnsupportedModel: if the prior knows single images only.
        """
        if getattr(prior, "views", 1) < 2:  # tools may be around it
            raise UnsupportedModel(
                "guidance: {kind: multiview} got a prior of single images. Expected "
                "prior: {kind: pocket_mv}, or {kind: mvdream} with a public checkpoint."
            )
        self.config, self.prior, self.prompts = config, prior, prompts
        self.text = prior.encode_prompt([prompts.prompt])

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for a batch of sets of renders.

        Args:
            images: renders in 0..1, with gradient, set by set.
            cameras: one per render.
            fraction: where in the stage we are, 0..1.
            generator: source of the timestep and the noise.

        Raises:
            ShapeError: if they are not whole sets of views from one elevation.
        """
        self._check_sets(images, cameras)
        latents = self.prior.encode_images(images)
        noisy = draw_noisy_latents(
            self.prior, latents, self.config.timesteps, fraction=fraction, generator=generator
        )
        with torch.no_grad():
            gradient, x0 = self._gradient(latents, noisy, cameras, fraction)
            gradient, non_finite = replace_non_finite(gradient)
            if self.config.grad_clip is not None:
                gradient = clip_gradient(gradient, value_at(self.config.grad_clip, fraction))
            norm = gradient_norm(gradient)
        read_back = partial(read_back_loss, self.prior, images, latents)
        loss = gradient_loss(latents, gradient)
        return GuidanceOutput(loss, norm, noisy.t, non_finite, x0, read_back)

    def _gradient(
        self, latents: Tensor, noisy: NoisyLatents, cameras: Cameras, fraction: float
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        loss, prior = self.config.loss, self.prior
        scale = value_at(self.config.guidance_scale, fraction)
        guided, unguided = self._predict(noisy, cameras, scale)
        x0 = prior.predict_x0(noisy.z_t, noisy.t, guided)
        if isinstance(loss, X0ReconstructionConfig):
            plain = prior.predict_x0(noisy.z_t, noisy.t, unguided)
            x0 = rescale_sets(x0, plain, views=prior.views, share=loss.rescale)
            gradient = latents - x0
        else:
            gradient = sds_gradient(guided, noisy.noise, noisy.alpha**2, loss.weighting)

        def preview() -> Tensor:
            with torch.no_grad():
                return prior.decode_latents(x0)

        return gradient, preview

    def _predict(
        self, noisy: NoisyLatents, cameras: Cameras, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Guided and conditional epsilon, from one denoiser call on [uncond, cond]."""
        prior, z_t, t = self.prior, noisy.z_t, noisy.t
        rows = len(z_t)
        camera = camera_vector(cameras.c2w).to(z_t)
        text = self.text.expand(rows).seen_from(cameras.azimuth_deg)
        cond = Condition(text, camera, roles=("cond",) * rows)
        if scale == 1.0:
            noise_pred = prior.predict_noise(z_t, t, cond)
            return noise_pred, noise_pred
        untold = self.prompts.at(cameras).uncond.expand(rows).seen_from(cameras.azimuth_deg)
        uncond = Condition(untold, camera, roles=("uncond",) * rows)
        z_twice, t_twice = torch.cat([z_t, z_t]), torch.cat([t, t])
        both = prior.predict_noise(z_twice, t_twice, cat_conditions([uncond, cond]))
        eps_uncond, eps_cond = both.chunk(2)
        return classifier_free_guidance(eps_uncond, eps_cond, scale), eps_cond

    def _check_sets(self, images: Tensor, cameras: Cameras) -> None:
        views, rows = self.prior.views, len(images)
        if len(cameras) != rows or rows % views:
            raise ShapeError(
                f"{rows} renders came with {len(cameras)} cameras. Give one camera per render, "
                f"and whole sets of {views} views (cameras: kind: multiview)."
            )
        elevation = cameras.elevation_deg.reshape(-1, views)
        if (elevation - elevation[:, :1]).abs().max() > SAME_DEG:
            raise ShapeError(
                f"The views of a set have elevations {elevation[0].tolist()}. Expected one for "
                "each set, as the prior was trained on; use cameras of kind multiview."
            )


def rescale_sets(
    guided: Float[Tensor, "b c s s"], cond: Float[Tensor, "b c s s"], *, views: int, share: float
) -> Float[Tensor, "b c s s"]:
    """Bring the spread of each set of views back to the conditional prediction's.

    ``lerp(x, x std(cond) / std(x), share)``, each std over all values of a set, so that its views
    keep their relative brightness. Equal inputs come back as they are.
    """

    def std(x0: Tensor) -> Tensor:
        return x0.reshape(len(x0) // views, -1).std(1) + STD_EPS

    factor = (std(cond) / std(guided)).repeat_interleave(views).view(-1, 1, 1, 1)
    return torch.lerp(guided, guided * factor, share)
