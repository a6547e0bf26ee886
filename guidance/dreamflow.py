"""Approximate probability-flow optimisation (DreamFlow, arXiv 2403.14966).

With s = sigma / alpha, the prior's denoiser D_p and that of a critic trained on the renders, D_phi,
the flow from the renders to the data is ``dx/ds = (D_phi - D_p) / s = eps_p - eps_phi``, both at
``x + s n`` with one shared noise n. One Euler step from s_i down to s_{i+1} moves the render to

    x' = x - (s_i - s_{i+1}) (eps_p - eps_phi)

so that difference is the gradient on the latents: VSD with a predetermined, falling timestep and
the step in s as its weight. Several batches of views share a timestep, which spreads one step of
the flow over all views; the critic learns at that same timestep, from a noise of its own.

Everything derives from the fraction of the stage: timestep i is floor(fraction N), so a run that
resumes goes on exactly. Timesteps are real numbers, linear in t; the denoisers get the nearest
whole one, and the noise has its level. t = 0 is the clean image, s = 0.

Deviations and choices: there is no public code. The critic learns after each step of the scene
instead of before it, as every rule here does, so that the first batch of a timestep meets a critic
that last saw the timestep before.

    guidance = DreamFlowGuidance(DreamFlowConfig(), prior, prompts, seed=0)
    output = guidance(images, cameras, fraction=0.3, generator=generator)
    output.loss.backward()
    guidance.after_step(images.detach(), cameras, fraction=0.3, generator=critic_generator)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.critic import Critic
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.noising import NoisyLatents, noisy_latents
from guidance.prompts import ViewPrompts
from guidance.vsd import VSDGuidance
from image_tools.diffusion.prior import DiffusionPrior

__all__ = ["DreamFlowGuidance", "FlowSchedule", "flow_schedule"]

# step / steps * N can fall short of a whole number by rounding, never by this much.
ROUNDING = 1e-6


@dataclass(frozen=True)
class FlowSchedule:
    """Noise levels of a probability flow, from the first to the last."""

    times: Float[Tensor, " ends"]
    """Real timesteps, strictly falling: one for each step, and the one where the last arrives."""
    timesteps: Int[Tensor, " steps"]
    """What the denoisers are told at each step: the nearest timestep they were trained on."""
    levels: Float[Tensor, " ends"]
    """s = sigma / alpha at ``times``, strictly falling."""

    def index(self, fraction: float) -> int:
        """The step at ``fraction`` of a stage: floor(fraction N), and the last one at 1."""
        n = len(self.timesteps)
        return min(max(math.floor(fraction * n + ROUNDING), 0), n - 1)

    def step_size(self, index: int) -> float:
        """``s_i - s_{i+1}``."""
        return float(self.levels[index] - self.levels[index + 1])


def flow_schedule(alphas_cumprod: Float[Tensor, " steps"], config: DreamFlowConfig) -> FlowSchedule:
    """The steps from ``start_t`` to ``end_t``, evenly spaced in t.

    Args:
        alphas_cumprod: of the prior, one for each timestep it was trained on.
        config: start, end and number of steps.

    Raises:
        ValueError: if start and end are the same timestep of this prior.
    """
    n_train = len(alphas_cumprod)
    alpha_bar = alphas_cumprod.cpu().double()  # MPS has no double
    trained = ((1.0 - alpha_bar) / alpha_bar).sqrt()
    trained[0] = 0.0  # t = 0 stands for the clean image, not for its first step of noise
    first, last = (min(share * n_train, n_train - 1) for share in (config.start_t, config.end_t))
    if last >= first:
        raise ValueError(
            f"start_t {config.start_t} and end_t {config.end_t} are both the last of the prior's "
            f"{n_train} timesteps. Lower end_t."
        )
    times = torch.linspace(first, last, config.timesteps + 1, dtype=torch.float64)
    below = times.floor().long().clamp(max=n_train - 2)
    levels = torch.lerp(trained[below], trained[below + 1], times - below)
    return FlowSchedule(times, times[:-1].round().long(), levels)


class DreamFlowGuidance(VSDGuidance):
    """Moves renders along the probability flow towards what the prior makes of the prompt."""

    config: DreamFlowConfig

    def __init__(
        self,
        config: DreamFlowConfig,
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
        self.schedule = flow_schedule(prior.alphas_cumprod, config)
        super().__init__(config, prior, prompts, seed=seed, critic=critic)

    def draw_noise(
        self, latents: Float[Tensor, "b c s s"], *, fraction: float, generator: torch.Generator
    ) -> NoisyLatents:
        """One noise for both denoisers, at the timestep of this part of the stage."""
        t = self._timesteps(len(latents), fraction)
        return noisy_latents(self.prior, latents, t, generator=generator)

    def weight(self, noisy: NoisyLatents, *, fraction: float) -> float:
        """The Euler step in s, or 1."""
        if self.config.step_norm == "unit":
            return 1.0
        return self.schedule.step_size(self.schedule.index(fraction))

    def critic_timesteps(self, n_views: int, *, fraction: float) -> Int[Tensor, " b"]:
        """The flow's own timestep: the critic need only know the renders there."""
        return self._timesteps(n_views, fraction)

    def _timesteps(self, n_views: int, fraction: float) -> Int[Tensor, " b"]:
        return self.schedule.timesteps[self.schedule.index(fraction)].expand(n_views)
