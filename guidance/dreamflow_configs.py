"""Configuration of DreamFlow, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from guidance.critic_configs import CriticConfig
from guidance.schedules import ScheduleValue, check_schedule

__all__ = ["DreamFlowConfig"]


@dataclass(frozen=True)
class DreamFlowConfig:
    """DreamFlow: approximate probability-flow optimisation (arXiv 2403.14966).

    The timesteps of each stage (1.0 to 0.2, 0.5 to 0.1, 0.3 to 0.0) are published. Their number,
    the guidance scale and the critic's settings are not: the defaults here are ours.
    """

    kind: Literal["dreamflow"] = "dreamflow"
    start_t: float = 1.0
    """First timestep, as a fraction of the training length. Published: 1.0, 0.5, 0.3 by stage."""
    end_t: float = 0.2
    """Where the last step arrives, as a fraction of the training length; 0 is the clean image.
    Published: 0.2, 0.1, 0.0 by stage."""
    timesteps: int = 800
    """Number N of timesteps, evenly spaced and falling. A stage of k N steps spends k batches of
    views on each, shared by its particles; one with fewer steps has fewer, larger ones. Ours: 800,
    300, 300 by stage."""
    guidance_scale: ScheduleValue = 7.5
    """s in eps_u + s (eps_c - eps_u) of the prior; the critic has none. Ours."""
    guidance_rescale: float = 0.0
    """Share phi of the standard-deviation rescale (arXiv 2305.08891, Eq. 16); 0 = none."""
    step_norm: Literal["raw", "unit"] = "raw"
    """raw weighs the difference of the predictions by the Euler step in sigma / alpha, which falls
    by orders of magnitude over a stage, and losses beside it should fall as well; unit leaves that
    weight out. Ours."""
    grad_clip: ScheduleValue | None = None
    """Largest absolute value of each entry of the latent gradient; empty does not clip."""
    consistency: ScheduleValue = 1.0
    """Factor of the subjects' consistency_scale (w_con), for a prior with consistency guidance."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """The model of the renders. It learns at the timestep of the flow. Ours: as for VSD."""

    def within(self, steps: int) -> DreamFlowConfig:
        """The same flow in as many steps of a particle as there are: one skipped would be lost."""
        return replace(self, timesteps=max(1, min(self.timesteps, steps)))

    def __post_init__(self) -> None:
        """Refuse a schedule that does not fall, and a scale, clip value or factor below 0."""
        if not 0.0 <= self.end_t < self.start_t <= 1.0:
            raise ValueError(
                f"start_t is {self.start_t} and end_t is {self.end_t}. "
                "Keep 0 <= end_t < start_t <= 1."
            )
        if self.timesteps < 1:
            raise ValueError(f"timesteps is {self.timesteps} - expected at least 1.")
        check_schedule("guidance_scale", self.guidance_scale, low=0.0)
        check_schedule("consistency", self.consistency, low=0.0)
        if self.grad_clip is not None:
            check_schedule("grad_clip", self.grad_clip, low=0.0)
