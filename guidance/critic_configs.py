"""Configuration of the critic and of variational score distillation, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guidance.configs import TimestepsConfig, UniformTimestepsConfig, Weighting
from guidance.schedules import ScheduleValue, check_schedule
from image_tools.configs import PriorConfig

__all__ = ["CriticConfig", "VSDConfig"]


@dataclass(frozen=True)
class CriticConfig:
    """A copy of a prior, adapted by LoRA to what the renders look like by now."""

    prior: PriorConfig | None = None
    """Model the critic is made from; empty for the stage's own prior, which costs no extra memory.
    It may predict epsilon or v, but must share latents and noise schedule with the stage's."""
    rank: int = 4
    """Rank of the LoRA deltas on all attention layers."""
    learning_rate: float = 1e-4
    """Learning rate of AdamW."""
    warmup_steps: int = 0
    """Updates over which the learning rate rises from 0; ProlificDreamer's code has 500."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean of the gradient and of its square."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    steps: int = 1
    """Updates per step of the scene, each with its own noise."""
    camera_condition: Literal["extrinsics", "mvp", "none"] = "extrinsics"
    """What the critic is told of the camera of each view: extrinsics, its pose, a camera-to-world
    matrix with a translation of length 1; mvp, the matrix from world to clip space, which has the
    distance and the field of view in it too; none, nothing."""
    camera_dropout: float = 0.1
    """Share of the views whose camera is replaced by zeros while training."""
    guidance_scale: float = 1.0
    """s in eps_0 + s (eps_camera - eps_0), where eps_0 is the critic's prediction for the zero
    camera (threestudio's guidance_scale_lora). 1 leaves the guidance out and halves the cost."""
    checkpointing: bool = False
    """Recompute the denoiser while training instead of storing its activations. Same result."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for name, low in (("rank", 1), ("warmup_steps", 0), ("steps", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least {low}.")
        for name in ("learning_rate", "weight_decay", "guidance_scale"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 or more.")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)} - expected two numbers in [0, 1).")
        if not 0.0 <= self.camera_dropout <= 1.0:
            raise ValueError(f"camera_dropout is {self.camera_dropout} - expected 0 to 1.")
        if self.camera_condition == "none" and self.guidance_scale != 1.0:
            raise ValueError(
                f"guidance_scale is {self.guidance_scale} for a critic that knows no camera - "
                "expected 1, or camera_condition: extrinsics or mvp."
            )


@dataclass(frozen=True)
class VSDConfig:
    """Variational score distillation (ProlificDreamer, arXiv 2305.16213, Eq. 9)."""

    kind: Literal["vsd"] = "vsd"
    guidance_scale: ScheduleValue = 7.5
    """s in eps_u + s (eps_c - eps_u) of the prior; the critic has none."""
    guidance_rescale: float = 0.0
    """Share phi of the standard-deviation rescale (arXiv 2305.08891, Eq. 16); 0 = none."""
    weighting: Weighting = "sds"
    """w(t): sds = 1 - alpha_bar, uniform = 1, fantasia3d = sqrt(alpha_bar) (1 - alpha_bar)."""
    timesteps: TimestepsConfig = field(default_factory=UniformTimestepsConfig)
    """How timesteps of the gradient are chosen; the critic's are uniform over all."""
    grad_clip: ScheduleValue | None = None
    """Largest absolute value of each entry of the latent gradient; empty does not clip."""
    consistency: ScheduleValue = 1.0
    """Factor of the subjects' consistency_scale (w_con), for a prior with consistency guidance."""
    critic: CriticConfig = CriticConfig()
    """The model of the renders that takes the place of the noise."""

    def __post_init__(self) -> None:
        """Refuse a scale, a clip value or a factor below 0."""
        check_schedule("guidance_scale", self.guidance_scale, low=0.0)
        check_schedule("consistency", self.consistency, low=0.0)
        if self.grad_clip is not None:
            check_schedule("grad_clip", self.grad_clip, low=0.0)
