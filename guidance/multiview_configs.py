"""Configuration of multi-view guidance, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guidance.configs import TimestepsConfig, UniformTimestepsConfig, Weighting
from guidance.schedules import ScheduleValue, check_schedule

__all__ = [
    "MultiViewConfig",
    "MultiViewLossConfig",
    "NoiseDifferenceConfig",
    "X0ReconstructionConfig",
]


@dataclass(frozen=True)
class X0ReconstructionConfig:
    """Pull the latents towards the clean ones that the guided prediction implies (Eq. 4)."""

    kind: Literal["x0_reconstruction"] = "x0_reconstruction"
    rescale: float = 0.5
    """Share phi by which the spread of each set is brought back to that of the unguided
    prediction; high guidance scales oversaturate without. MVDream's code has 0.5, and its authors
    advise 0.3 against floaters."""

    def __post_init__(self) -> None:
        """Refuse shares outside 0..1."""
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale is {self.rescale} - expected 0 to 1.")


@dataclass(frozen=True)
class NoiseDifferenceConfig:
    """Score distillation: the predicted noise against the true one (arXiv 2209.14988, Eq. 3)."""

    kind: Literal["sds"] = "sds"
    weighting: Weighting = "sds"
    """w(t): sds = 1 - alpha_bar, uniform = 1, fantasia3d = sqrt(alpha_bar) (1 - alpha_bar)."""


MultiViewLossConfig = X0ReconstructionConfig | NoiseDifferenceConfig


@dataclass(frozen=True)
class MultiViewConfig:
    """Guidance by a prior of several views at once (MVDream, arXiv 2308.16512, section 3.4).

    Needs a prior of kind pocket_mv or mvdream, and cameras of kind multiview. The prompt is used as
    it is for all views, whatever the scene's view_prompts: cameras say what the views are.
    """

    kind: Literal["multiview"] = "multiview"
    guidance_scale: ScheduleValue = 50.0
    """s in eps_u + s (eps_c - eps_u)."""
    loss: MultiViewLossConfig = field(default_factory=X0ReconstructionConfig)
    """How predictions become a gradient."""
    timesteps: TimestepsConfig = field(
        default_factory=lambda: UniformTimestepsConfig(
            min_t=((0.0, 0.98), (0.8, 0.02)), max_t=((0.0, 0.98), (0.8, 0.5)), share="batch"
        )
    )
    """How timesteps are chosen; all views of a step share one."""
    grad_clip: ScheduleValue | None = None
    """Largest absolute value of each entry of the latent gradient; empty does not clip."""

    def __post_init__(self) -> None:
        """Refuse timesteps that differ between the views of a set, and what is below 0."""
        check_schedule("guidance_scale", self.guidance_scale, low=0.0)
        if isinstance(self.timesteps, UniformTimestepsConfig) and self.timesteps.share != "batch":
            raise ValueError(
                f"timesteps.share is '{self.timesteps.share}' - expected 'batch': the prior was "
                "trained on sets whose views have one timestep."
            )
        if self.grad_clip is not None:
            check_schedule("grad_clip", self.grad_clip, low=0.0)
