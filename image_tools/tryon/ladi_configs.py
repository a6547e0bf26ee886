"""LaDI-VTON (arXiv 2305.13501): its networks' sizes, its use and its trainers, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from image_tools.personalization.loop_configs import TuningConfig
from image_tools.tryon.garment_configs import BodyPart

__all__ = [
    "CATEGORY_WORDS",
    "AdapterSettings",
    "AdapterTrainingConfig",
    "EmascSettings",
    "EmascTrainingConfig",
    "LadiTrainingConfig",
    "LadiVtonConfig",
    "RefinementSettings",
    "WarpSettings",
    "WarpTrainingConfig",
]

CATEGORY_WORDS: dict[BodyPart, str] = {
    "upper": "an upper body garment",
    "lower": "a lower body garment",
    "dress": "a dress",
}
"""What the prompt calls garments."""


@dataclass(frozen=True)
class WarpSettings:
    """Sizes of the network that bends a garment by a thin plate spline."""

    size: tuple[int, int] = (256, 192)
    """Rows and columns at which it looks."""
    person_channels: int = 21
    """Channels of the person: 3 of the picture without the garment, 18 of the pose."""
    width: int = 64
    """Channels after the first convolution; each halving doubles them, up to 8 times as many."""
    halvings: int = 4
    """Halvings from pixels to the features that are compared."""


@dataclass(frozen=True)
class RefinementSettings:
    """Sizes of the U-Net that repaints a bent garment."""

    in_channels: int = 24
    """3 of the person without the garment, 18 of the pose, 3 of the bent garment."""
    width: int = 64
    """Channels at full size."""
    bias: bool = False
    """Whether its convolutions have biases; normalisation follows them."""


@dataclass(frozen=True)
class AdapterSettings:
    """Sizes of the inversion adapter."""

    image_width: int = 1280
    """Channels of the CLIP vision model's tokens."""
    image_heads: int = 16
    """Heads of the encoder layer."""
    image_mlp: int = 5120
    """Inner width of the encoder layer."""
    activation: str = "gelu"
    """Activation of the encoder layer."""
    hidden: int = 5120
    """Inner width of the perceptron."""
    word_width: int = 1024
    """Channels of the text encoder's word embeddings."""
    words: int = 16
    """Pseudo-words for each garment."""
    dropout: float = 0.5
    """Dropout between the perceptron's layers, in training."""


@dataclass(frozen=True)
class EmascSettings:
    """Sizes of the skip connections of the VAE, from the finest level."""

    in_channels: tuple[int, ...] = (128, 128, 128, 256, 512)
    """Channels of the encoder's features."""
    out_channels: tuple[int, ...] = (128, 256, 512, 512, 512)
    """Channels of the decoder's, where they are added."""


@dataclass(frozen=True)
class LadiVtonConfig:
    """LaDI-VTON (arXiv 2305.13501): one garment in words that nobody said and bent to the body. The
    prior is Stable Diffusion 2 (base), whose VAE and text encoder serve."""

    unet: str
    """The denoiser of 31 channels: the authors' unet_vitonhd.pth or unet_dresscode.pth, or a stock
    folder."""
    emasc: str
    """The VAE's skip connections: emasc_*.pth, or a folder."""
    adapter: str
    """The inversion adapter: inversion_adapter_*.pth, or a folder."""
    warping: str
    """The networks that bend the garment: warping_*.pth, or a folder with tps and refinement."""
    image_encoder: str
    """Folder of the CLIP vision model (ViT-H/14, laion2B)."""
    kind: Literal["ladi_vton"] = "ladi_vton"

    def models(self) -> list[tuple[str, str]]:
        """Weights by key."""
        names = ("unet", "emasc", "adapter", "warping", "image_encoder")
        return [(name, getattr(self, name)) for name in names]


WARP = TuningConfig(steps=36_000, learning_rate=1e-4, betas=(0.5, 0.99), weight_decay=0.0)
LONG = TuningConfig(steps=200_000, learning_rate=1e-5, warmup_steps=500)
EMASC = TuningConfig(steps=40_000, learning_rate=1e-5, warmup_steps=500)


@dataclass(frozen=True)
class WarpTrainingConfig:
    """How the two networks that bend garments are trained, each for 50 epochs (section 3.2)."""

    loop: TuningConfig = WARP
    """Length and learning rate; 50 epochs of VITON-HD are 36,000 steps of 16."""
    regularisation: float = 0.01
    """Weight of the spline's regularisers."""
    perceptual: float = 0.25
    """Weight of the perceptual loss of the refinement."""


@dataclass(frozen=True)
class EmascTrainingConfig:
    """How the skip connections are trained (section 3.4)."""

    loop: TuningConfig = EMASC
    """Length and learning rate."""
    perceptual: float = 0.5
    """Weight of the perceptual loss."""
    checkpointing: ClassVar[bool] = False
    """Not offered: hooks that end with the forward pass would be missing in a second one."""


@dataclass(frozen=True)
class AdapterTrainingConfig:
    """How the inversion adapter is trained, beside a frozen inpainting model (section 3.3)."""

    loop: TuningConfig = LONG
    """Length and learning rate."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""


@dataclass(frozen=True)
class LadiTrainingConfig:
    """How the denoiser of 31 channels is trained, together with the adapter (section 3.4)."""

    loop: TuningConfig = LONG
    """Length and learning rate."""
    dropout: float = 0.2
    """Share of samples without words, without the bent garment and without pose, each for itself,
    so that guidance has something to lead away from."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0.0 <= self.dropout <= 1.0:
            raise ValueError(f"dropout is {self.dropout} - expected 0 to 1.")
