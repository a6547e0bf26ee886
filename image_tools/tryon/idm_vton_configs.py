"""IDM-VTON (arXiv 2403.05139): its trainers, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.dreambooth_configs import LoraShapeConfig, RankPatternConfig
from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["AugmentationConfig", "IdmCustomizationConfig", "IdmTrainingConfig", "IdmVtonConfig"]

FULL = TuningConfig(steps=63_000, learning_rate=1e-5)
CUSTOM = TuningConfig(steps=100, learning_rate=1e-4)
NOWHERE = 0  # rank
UP_ATTENTION = LoraShapeConfig(
    rank=16, patterns=(RankPatternConfig(layers=r"^(?!up_blocks\.)", rank=NOWHERE),)
)


@dataclass(frozen=True)
class IdmVtonConfig:
    """IDM-VTON (arXiv 2403.05139): one garment, which the denoiser sees in two ways. The prior is
    the Stable Diffusion XL whose VAE and text encoders serve."""

    model: str
    """Folder of the weights, in the layout of yisol/IDM-VTON: unet, unet_encoder, image_encoder,
    scheduler."""
    kind: Literal["idm_vton"] = "idm_vton"
    garment_lora: str | None = None
    """LoRA of a garment that the denoiser was made to know; empty for none."""

    def models(self) -> list[tuple[str, str]]:
        """Weights by key."""
        lora = [] if self.garment_lora is None else [("garment_lora", self.garment_lora)]
        return [("model", self.model), *lora]


@dataclass(frozen=True)
class AugmentationConfig:
    """How samples are varied, as IDM-VTON's trainer does; each change comes to a sample or not."""

    mirrored: float = 0.5
    """Share of samples shown as mirror images, garment and all."""
    recolored: float = 0.5
    """Share of samples whose colours are changed, person and garment alike."""
    brightness: float = 0.5
    """Brightness is multiplied by 1 - this to 1 + this."""
    contrast: float = 0.3
    """Contrast likewise."""
    saturation: float = 0.5
    """Saturation likewise."""
    hue: float = 0.5
    """Hue is turned by up to this share of a full turn, both ways."""
    scaled: float = 0.5
    """Share of samples whose person is scaled; the garment is not."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Range of the factor."""
    shifted: float = 0.5
    """Share of samples whose person is shifted; the garment is not."""
    shift: float = 0.2
    """Up to this share of the picture, on both axes."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("mirrored", "recolored", "scaled", "shifted"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1.")
        for name in ("brightness", "contrast", "saturation", "hue", "shift"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 up to 1.")
        low, high = self.scale
        if not 0.0 < low <= high:
            raise ValueError(f"scale is {low} to {high} - expected 0 < low <= high.")


@dataclass(frozen=True)
class IdmTrainingConfig:
    """How IDM-VTON's denoiser and image prompt are trained (section 4.1)."""

    loop: TuningConfig = FULL
    """Length and learning rate; batches of 24 pictures of 1024 x 768 want ``accumulate``."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """How samples are varied."""
    dropout: float = 0.0
    """Share of samples without garment and text, so that guidance has something to lead away from.
    The released trainer drops none."""
    flow_weight: float = 0.0
    """Weight of Leffa's loss (arXiv 2412.08486), by which attention learns where the parts of the
    garment go; 1e-3 late in training. Samples then need worn_mask."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(f"dropout is {self.dropout} - expected 0 to 1.")
        if self.flow_weight < 0.0:
            raise ValueError(f"flow_weight is {self.flow_weight} - expected at least 0.")
        if self.flow_weight > 0.0 and self.checkpointing:
            raise ValueError(
                "flow_weight and checkpointing are both set - expected one of them: attention that "
                "is watched is not recomputed."
            )


@dataclass(frozen=True)
class IdmCustomizationConfig:
    """How the denoiser is made to know one garment (section 3.4)."""

    loop: TuningConfig = CUSTOM
    """The paper takes 100 steps. The learning rate is for low-rank deltas."""
    lora: LoraShapeConfig = UP_ATTENTION
    """The paper tunes the attention of the decoder; so do these deltas, alone."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""
