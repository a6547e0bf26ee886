"""Configuration of the ControlNet trainer, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["ControlTrainingConfig"]

LONG = TuningConfig(steps=4000, learning_rate=1e-5)


@dataclass(frozen=True)
class ControlTrainingConfig:
    """How a ControlNet is trained (arXiv 2302.05543, section 3.3)."""

    loop: TuningConfig = LONG
    """Length and learning rate. Controls take hold suddenly, after thousands of optimizer steps."""
    empty_prompts: float = 0.5
    """Share of prompts replaced by an empty one, so that the condition image alone says enough."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (arXiv 2303.09556); empty for none, as the authors train."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.empty_prompts <= 1.0:
            raise ValueError(f"empty_prompts is {self.empty_prompts} - expected 0 to 1.")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0.0:
            raise ValueError(f"min_snr_gamma is {self.min_snr_gamma} - expected above 0.")
