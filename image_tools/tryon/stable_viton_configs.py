"""StableVITON (arXiv 2312.01725): its networks' sizes, its use and its trainer, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from image_tools.personalization.loop_configs import TuningConfig

__all__ = [
    "ContextSettings",
    "PairAugmentation",
    "StableVitonConfig",
    "StableVitonTrainingConfig",
    "StartLatents",
]

StartLatents = Literal["noise", "person"]
"""What sampling begins with: noise, or the person's own latents with the noise of the last
timestep, as the released code has it. Those keep 7 % of the picture, the old garment's too."""


@dataclass(frozen=True)
class ContextSettings:
    """Sizes of what makes one context token of the garment."""

    image_width: int = 1024
    """Channels of the CLIP vision model's class token."""
    blocks: int = 5
    """Residual blocks."""
    text_width: int = 768
    """Channels of the denoiser's context."""


@dataclass(frozen=True)
class StableVitonConfig:
    """StableVITON (arXiv 2312.01725): one garment, whose places the body's look for by
    cross-attention. The prior is Stable Diffusion 1; words are not read."""

    model: str
    """The authors' checkpoint, VITONHD.ckpt, a .safetensors conversion of it, or a folder that a
    training wrote, with the denoiser in its folder unet."""
    image_encoder: str
    """Folder of the CLIP vision model (openai/clip-vit-large-patch14)."""
    kind: Literal["stable_viton"] = "stable_viton"
    vae: str | None = None
    """The VAE tuned on VITON-HD (VITONHD_VAE_finetuning.ckpt); empty for the one in the model's
    checkpoint, or the prior's where that has none."""
    start: StartLatents = "noise"
    """What sampling begins with. person repeats the released code, which shows the model a little
    of the picture that it shall make."""

    def models(self) -> list[tuple[str, str]]:
        """Weights by key."""
        vae = [] if self.vae is None else [("vae", self.vae)]
        return [("model", self.model), ("image_encoder", self.image_encoder), *vae]


@dataclass(frozen=True)
class PairAugmentation:
    """How pairs are varied (section 4.3): person and garment move apart from each other."""

    mirrored: float = 0.5
    """Share of pairs shown as mirror images, both together."""
    moved: float = 0.5
    """Share of people, and for itself of garments, that are scaled and shifted."""
    scale: float = 0.2
    """Sizes are multiplied by 1 - this to 1 + this."""
    shift: float = 0.2
    """Up to this share of the picture, on both axes."""
    recolored: float = 0.5
    """Share of pairs whose colours are changed, both alike."""
    brightness: float = 0.2
    """Brightness and contrast are multiplied by 1 - this to 1 + this."""
    hue: float = 0.014
    """Hue is turned by up to this share of a full turn: 5 of 360 degrees."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("mirrored", "moved", "recolored"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1.")
        for name in ("scale", "shift", "brightness", "hue"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 up to 1.")


LONG = TuningConfig(steps=100_000, learning_rate=1e-4)


@dataclass(frozen=True)
class StableVitonTrainingConfig:
    """How the spatial encoder and the warping blocks are trained beside a frozen denoiser."""

    loop: TuningConfig = LONG
    """Learning rate as released, for batches of 32; the number of steps is not."""
    augmentation: PairAugmentation = PairAugmentation()
    """How pairs are varied."""
    dropout: float = 0.2
    """Share of samples whose context token is the learnt one for "nothing"."""
    atv_weight: float = 0.001
    """Weight of the loss that keeps attention smooth (attention total variation); the authors add
    it in a second stage, 0 leaves it out."""
    atv_blocks: tuple[int, ...] = (4,)
    """Warping blocks, from the coarsest, whose attention it acts on; the released code takes the
    middle one of the middle level alone."""
    trains_mapper: bool = False
    """Train the blocks that make the context token, too; the authors take Paint-by-Example's."""
    checkpointing: ClassVar[bool] = False
    """Not offered: hooks that end with the forward pass would be missing in a second one."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(f"dropout is {self.dropout} - expected 0 to 1.")
        if self.atv_weight < 0.0:
            raise ValueError(f"atv_weight is {self.atv_weight} - expected at least 0.")
