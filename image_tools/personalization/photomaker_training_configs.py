"""Configuration of PhotoMaker's trainer (arXiv 2312.04461), importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from image_tools.personalization.dreambooth_configs import LoraShapeConfig
from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["PhotoMakerTrainingConfig"]

LONG = TuningConfig(steps=100_000, learning_rate=1e-4)
ATTENTION = LoraShapeConfig(rank=64)


@dataclass(frozen=True)
class PhotoMakerTrainingConfig:
    """How PhotoMaker is trained (arXiv 2312.04461): ID encoder and LoRA together."""

    loop: TuningConfig = LONG
    """Length, bookkeeping and the LoRA's learning rate, 1e-4."""
    encoder_learning_rate: float = 1e-5
    """Learning rate of everything else."""
    lora: LoraShapeConfig = ATTENTION
    """Which layers of the denoiser get deltas; rank 64 on its attention."""
    clip_layers: int | None = None
    """How many of CLIP's last layers are trained; empty for all of it, 0 for none: then only what
    stands behind it is."""
    batch_size: int = 4
    """Samples in a batch."""
    max_photos: int = 4
    """Each sample is shown 1 to so many other photos of the same person, never itself."""
    masked: float = 0.5
    """Share of the samples whose error counts inside the person's mask alone."""
    empty_prompts: float = 0.1
    """Share of the samples with the unconditional prompt, so that guidance works."""
    trigger: str = "img"
    """The word behind the class word in captions."""
    checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass: less memory, more time, the same
    result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("masked", "empty_prompts"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1.")
        for name in ("batch_size", "max_photos"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least 1.")
        if self.clip_layers is not None and self.clip_layers < 0:
            raise ValueError(f"clip_layers is {self.clip_layers} - expected 0 or more, or none.")
        if self.lora.text_rank:
            raise ValueError(
                f"lora.text_rank is {self.lora.text_rank} - expected 0: PhotoMaker leaves the text "
                "encoders alone."
            )
