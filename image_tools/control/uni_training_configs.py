"""Configuration of the trainers of Uni-ControlNet's adapters, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from image_tools.control.uni_configs import UniDropoutConfig
from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["UniTrainingConfig"]

LONG = TuningConfig(steps=100_000, learning_rate=1e-5)
PUBLISHED = UniDropoutConfig()


@dataclass(frozen=True)
class UniTrainingConfig:
    """How one of the two adapters is trained (arXiv 2305.16322, section 4.1)."""

    loop: TuningConfig = LONG
    """Length and learning rate."""
    dropout: UniDropoutConfig = PUBLISHED
    """What is hidden from the adapter, and of the prompt."""
