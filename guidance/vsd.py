"""Variational score distillation (ProlificDreamer, arXiv 2305.16213, Eq. 9).

    g = w(t) (eps_guided(z_t; y_view) - eps_phi(z_t; y, c)),   z_t = alpha z + sigma eps

SDS with the noise replaced by what a critic, trained on the renders as they go, predicts. The
variance that the noise brings cancels, so that ordinary guidance scales (7.5) suffice. After each
step of the scene the critic learns from the same renders; neither sees the other's gradient.
Particles of a scene share the one critic.

Deviations: the posterior mean is encoded instead of a draw; the critic draws a timestep per view;
the pose that it reads has a translation of length 1; there is no embedding of the shading (renders
that teach it should all be shaded alike).

    guidance = VSDGuidance(VSDConfig(), prior, prompts, seed=0)
    output = guidance(images, cameras, fraction=0.3, generator=generator)
    output.loss.backward()
    guidance.after_step(images.detach(), cameras, fraction=0.3, generator=critic_generator)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.critic import Critic, LoraCritic
from guidance.critic_configs import VSDConfig
from guidance.gradient import clip_gradient, gradient_loss, gradient_norm, replace_non_finite
from guidance.noising import NoisyLatents, draw_noisy_latents
from guidance.prompts import ViewPrompts
from guidance.read_back import read_back_loss
from guidance.schedules import value_at
from guidance.sds import sds_weight
from guidance.students import weigh_students
from image_tools.diffusion.camera_embedding import camera_vector
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.prior import DiffusionPrior
from renderers.cameras import Cameras
from renderers.errors import ShapeError

__all__ = ["VSDGuidance"]


class VSDGuidance(GuidanceRule):
    """Pulls renders from what the critic sees in them towards what the prior sees."""

    def __init__(
        self,
        config: VSDConfig,
        prior: DiffusionPrior,
        prompts: ViewPrompts,
        *,
        seed: int,
        critic: Critic | None = None,
    ) -> None:
        """Guide with ``prior`` and a critic.

        Args:
            config: settings of the rule and of its critic.
            prior: pretrained model; the critic may be attached to its UNet.
            prompts: by view for the prior; the critic reads the plain prompt.
            seed: of the critic's initial values.
            critic: another model of the renders in place of the LoRA critic.
        """
        self.config, self.prior, self.prompts = config, prior, prompts
        self.critic = critic or LoraCritic(prior, config.critic, seed=seed)
        self.critic_text = self.critic.encode_prompt([prompts.prompt])
        self._encoded: tuple[Tensor, int, Tensor] | None = None

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for a batch of renders; the critic does not change.

        Args:
            images: renders in 0..1, with gradient.
            cameras: one per render.
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
        self._encoded = images.detach(), images._version, latents.detach()
        noisy = self.draw_noise(latents, fraction=fraction, generator=generator)
        weigh_students(self.prior, self.config.consistency, fraction)
        with torch.no_grad():
            difference, x0 = self._difference(noisy, cameras, fraction)
            gradient = self.weight(noisy, fraction=fraction) * difference
            gradient, non_finite = replace_non_finite(gradient)
            if self.config.grad_clip is not None:
                gradient = clip_gradient(gradient, value_at(self.config.grad_clip, fraction))
            norm = gradient_norm(gradient)
        read_back = partial(read_back_loss, self.prior, images, latents)
        loss = gradient_loss(latents, gradient)
        return GuidanceOutput(loss, norm, noisy.t, non_finite, x0, read_back)

    def after_step(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Train the critic on the renders; returns its mean loss as ``critic_loss``."""
        latents, camera = self._latents(images), self._camera(cameras)
        text = self._critic_text(cameras)
        t = self.critic_timesteps(len(latents), fraction=fraction)
        losses = [
            self.critic.train_step(latents, text, camera, t=t, generator=generator)
            for _ in range(self.config.critic.steps)
        ]
        return {"critic_loss": sum(losses) / len(losses)}

    def draw_noise(
        self, latents: Float[Tensor, "b c s s"], *, fraction: float, generator: torch.Generator
    ) -> NoisyLatents:
        """Timesteps and noise of the gradient."""
        timesteps = self.config.timesteps
        return draw_noisy_latents(
            self.prior, latents, timesteps, fraction=fraction, generator=generator
        )

    def weight(self, noisy: NoisyLatents, *, fraction: float) -> Tensor | float:
        """What the difference of the two predictions is multiplied by."""
        return sds_weight(noisy.alpha**2, self.config.weighting)

    def critic_timesteps(self, n_views: int, *, fraction: float) -> Int[Tensor, " b"] | None:
        """Timesteps of the critic's update; None for uniform draws."""
        return None

    def metric_names(self) -> tuple[str, ...]:
        """The critic's loss."""
        return ("critic_loss",)

    def state(self) -> dict[str, Tensor]:
        """The critic's weights and optimiser."""
        return self.critic.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with a saved critic."""
        self.critic.load_state(tensors)

    def close(self) -> None:
        """Take the critic off the prior."""
        self.critic.close()

    def _difference(
        self, noisy: NoisyLatents, cameras: Cameras, fraction: float
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        config, prior, z_t, t = self.config, self.prior, noisy.z_t, noisy.t
        scale = value_at(config.guidance_scale, fraction)
        noise_pred = self.prompts.at(cameras).guided_noise(
            prior, z_t, t, scale, rescale=config.guidance_rescale
        )
        text, camera = self._critic_text(cameras), self._camera(cameras)
        critic_pred = self.critic.predict_noise(z_t, t, text, camera)

        def x0() -> Tensor:
            with torch.no_grad():
                return prior.decode_latents(prior.predict_x0(z_t, t, noise_pred))

        return noise_pred - critic_pred, x0

    def _critic_text(self, cameras: Cameras) -> TextEmbedding:
        """The plain prompt for each view, which it knows, so that tools on the prior do too."""
        azimuth = cameras.azimuth_deg
        return self.critic_text.expand(len(azimuth)).seen_from(azimuth)

    def _camera(self, cameras: Cameras) -> Tensor | None:
        condition = self.config.critic.camera_condition
        if condition == "none":
            return None
        return cameras.mvp().flatten(1) if condition == "mvp" else camera_vector(cameras.c2w)

    def _latents(self, images: Tensor) -> Tensor:
        """Latents of the renders: those of the call before, if these are the same numbers."""
        encoded, self._encoded = self._encoded, None
        if encoded is not None:
            seen, version, latents = encoded
            is_same_memory = seen.data_ptr() == images.data_ptr() and seen.shape == images.shape
            if is_same_memory and images._version == version:
                return latents
        with torch.no_grad():
            return self.prior.encode_images(images)
