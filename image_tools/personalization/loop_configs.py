"""Configuration of the personalization training loop, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TuningConfig"]


@dataclass(frozen=True)
class TuningConfig:
    """Length, learning rate, precision and bookkeeping of one training."""

    steps: int = 400
    """Optimizer steps in all."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW; a group of parameters may have its own."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: as it is, or falling to zero along a cosine or a line."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW momentum decays."""
    epsilon: float = 1e-8
    """AdamW's term against division by zero."""
    weight_decay: float = 0.01
    """AdamW weight decay; a group of parameters may have its own."""
    clip_norm: float = 1.0
    """Gradient norm limit; 0 = none."""
    accumulate: int = 1
    """Batches whose mean gradient makes one optimizer step."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic of the forward passes (automatic mixed precision); trained weights stay float32.
    float16 needs a GPU."""
    checkpoint_steps: tuple[int, ...] = ()
    """Steps after which the result so far is written and kept, for instance (80, 400): a partially
    trained subject for the first stage of DreamBooth3D, the full one for the second."""
    save_every: int = 100
    """Steps between two saves of the state that a killed training goes on from."""
    sample_every: int = 0
    """Steps between two sample grids, which the untrained model begins; 0 = none."""
    log_every: int = 10
    """Steps between two lines of the log."""
    seed: int = 0
    """Seed of all batches: batch k depends on the seed and k alone."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name in ("steps", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least 1.")
        for name in (
            *("warmup_steps", "sample_every", "clip_norm", "learning_rate"),
            *("weight_decay", "epsilon"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least 0.")
        outside = [step for step in self.checkpoint_steps if not 1 <= step <= self.steps]
        if outside:
            raise ValueError(
                f"checkpoint_steps has {outside[0]} - expected steps from 1 to {self.steps}."
            )
