"""Configuration of ControlNets beside a prior: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ControlConfig", "ControlMode", "ControlWindow", "NoiseWindow", "StepWindow"]

ControlMode = Literal["balanced", "prompt", "control"]


@dataclass(frozen=True)
class StepWindow:
    """A control acts during a part of a sampler's steps, as in the stock pipelines."""

    kind: Literal["steps"] = "steps"
    start: float = 0.0
    """First share of the steps, 0 = from the beginning (the noisy end)."""
    end: float = 1.0
    """Last share of the steps, 1 = to the end."""

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"start {self.start}, end {self.end} - expected 0 <= start < end <= 1, shares of "
                "the sampler's steps."
            )

    @property
    def is_always_on(self) -> bool:
        """Whether no step is left out, so that none need be known."""
        return self.start == 0.0 and self.end == 1.0


@dataclass(frozen=True)
class NoiseWindow:
    """A control acts at some noise levels. Needs no sampler, so it fits 3D guidance."""

    kind: Literal["noise"] = "noise"
    low: float = 0.0
    """Least noise: timestep as a share of the training length."""
    high: float = 1.0
    """Most noise: timestep as a share of the training length."""

    def __post_init__(self) -> None:
        """Refuse an empty window."""
        if not 0.0 <= self.low < self.high <= 1.0:
            raise ValueError(
                f"low {self.low}, high {self.high} - expected 0 <= low < high <= 1, timesteps as "
                "shares of the training length."
            )


ControlWindow = StepWindow | NoiseWindow


@dataclass(frozen=True)
class ControlConfig:
    """One ControlNet (arXiv 2302.05543) and how strongly it acts."""

    weights: str
    """A folder in diffusers layout, or one .safetensors or .pth file of either layout."""
    settings: str | None = None
    """For one file: a folder that holds the matching diffusers config.json; empty where it lies
    beside the file."""
    strength: float = 1.0
    """Factor of the residuals; 0 switches the control off."""
    window: ControlWindow = StepWindow()
    """When it acts."""
    mode: ControlMode = "balanced"
    """balanced acts on both halves of guidance. control acts on the conditional half alone, and
    less in finer layers, so that an empty prompt suffices (the paper's guess mode; guidance scale
    3 to 5). prompt acts on both halves, less in finer layers, so that the prompt wins."""

    def __post_init__(self) -> None:
        """Refuse a negative strength."""
        if self.strength < 0.0:
            raise ValueError(f"strength is {self.strength} - expected 0 or more.")
