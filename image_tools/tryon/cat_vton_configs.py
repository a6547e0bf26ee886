"""CatVTON (arXiv 2407.15886): its use and its trainer, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["CatVtonConfig", "CatVtonTrainingConfig"]

LOOP = TuningConfig(steps=16_000, learning_rate=1e-5)


@dataclass(frozen=True)
class CatVtonConfig:
    """CatVTON (arXiv 2407.15886): one garment, drawn beside the person by a single denoiser. The
    prior is Stable Diffusion 1.5; words are not read."""

    unet: str
    """Stable Diffusion 1.5's inpainting denoiser: its folder, which holds unet or is it."""
    attention: str
    """Self-attention trained for it: a .safetensors file or its folder, such as
    mix-48k-1024/attention of zhengchong/CatVTON, or one trained here."""
    kind: Literal["cat_vton"] = "cat_vton"
    vae: str | None = None
    """Folder of the VAE, sd-vae-ft-mse for the authors; empty for the prior's own."""

    def models(self) -> list[tuple[str, str]]:
        """Weights by key."""
        vae = [] if self.vae is None else [("vae", self.vae)]
        return [("unet", self.unet), ("attention", self.attention), *vae]


@dataclass(frozen=True)
class CatVtonTrainingConfig:
    """How the self-attention is trained (section 4.2)."""

    loop: TuningConfig = LOOP
    """Length and learning rate; the paper's batches of 128 want ``accumulate``."""
    dropout: float = 0.1
    """Share of samples whose garment is not shown beside the noise, so that guidance has something
    to lead away from."""
    dream_power: float | None = 10.0
    """p of DREAM (arXiv 2312.00210), which moves noise and target by the model's own error; empty
    for the plain loss, which has one pass less."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(f"dropout is {self.dropout} - expected 0 to 1.")
        if self.dream_power is not None and self.dream_power < 0.0:
            raise ValueError(
                f"dream_power is {self.dream_power} - expected at least 0, or nothing."
            )
