"""Configuration of DreamBooth, DreamBooth-LoRA and DCO, importable without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from image_tools.configs import DdimConfig
from image_tools.personalization.loop_configs import TuningConfig

__all__ = [
    "ATTENTION_TARGETS",
    "CONVOLUTION_TARGETS",
    "TEXT_TARGETS",
    "BatchConfig",
    "ClassImagesConfig",
    "DcoConfig",
    "DreamBoothConfig",
    "DreamBoothLoraConfig",
    "LoraShapeConfig",
    "RankPatternConfig",
]

ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTION_TARGETS = ("conv1", "conv2", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value")
CLASS_SAMPLER = DdimConfig()
DREAMBOOTH_LOOP = TuningConfig(steps=400, learning_rate=5e-6)
LORA_LOOP = TuningConfig(steps=500, learning_rate=1e-4)
DCO_LOOP = TuningConfig(steps=2000, learning_rate=5e-5, weight_decay=1e-4)


@dataclass(frozen=True)
class BatchConfig:
    """What one batch is made of."""

    size: int = 4
    """Photos of the subject in a batch; with prior preservation as many class images go with
    them."""
    mirrored: bool = False
    """Also show each photo mirrored. For subjects without writing and without a left and right."""
    offset_noise: float = 0.0
    """Standard deviation of a constant added to each channel's noise; 0.1 lets a model learn very
    bright and very dark styles."""
    min_snr_gamma: float | None = None
    """gamma of the min-SNR weights (arXiv 2303.09556), for instance 5; empty for equal weights."""
    checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.size < 1:
            raise ValueError(f"size is {self.size} - expected at least 1 photo.")
        if self.offset_noise < 0.0:
            raise ValueError(f"offset_noise is {self.offset_noise} - expected at least 0.")
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0.0:
            raise ValueError(f"min_snr_gamma is {self.min_snr_gamma} - expected above 0, or none.")


@dataclass(frozen=True)
class ClassImagesConfig:
    """Prior preservation: images of the class, made by the prior before it is trained."""

    count: int = 100
    """How many images; 0 switches prior preservation off."""
    weight: float = 1.0
    """Lambda, the weight of their loss (arXiv 2208.12242, Eq. 2)."""
    sampler: DdimConfig = CLASS_SAMPLER
    """How they are made."""

    def __post_init__(self) -> None:
        """Refuse negative numbers."""
        if self.count < 0 or self.weight < 0.0:
            raise ValueError(
                f"count is {self.count} and weight {self.weight} - expected at least 0."
            )


@dataclass(frozen=True)
class RankPatternConfig:
    """Another rank for some layers."""

    layers: str
    """Regular expression found in the layer's name, for instance attn2 or up_blocks.*to_v."""
    rank: int
    """Rank of their deltas; 0 leaves them out."""
    alpha: float | None = None
    """Strength of their deltas; empty for alpha = rank."""

    def __post_init__(self) -> None:
        """Refuse a broken expression."""
        try:
            re.compile(self.layers)
        except re.error as error:
            raise ValueError(
                f"layers is {self.layers!r} - expected a regular expression ({error})."
            ) from error
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank} - expected at least 0.")


@dataclass(frozen=True)
class LoraShapeConfig:
    """Which layers get low-rank deltas, and of which rank (arXiv 2106.09685)."""

    rank: int = 4
    """Rank of each delta."""
    alpha: float | None = None
    """Strength: deltas are scaled by alpha / rank. Empty for alpha = rank."""
    targets: tuple[str, ...] = ATTENTION_TARGETS
    """Endings of the names of the denoiser's linear and convolution layers that get a delta;
    conv1, conv2, proj_in, proj_out, ff.net.0.proj and ff.net.2 are further ones."""
    text_rank: int = 0
    """Rank of the text encoders' deltas; 0 leaves the text encoders alone."""
    text_targets: tuple[str, ...] = TEXT_TARGETS
    """Endings of the names of the text encoders' layers that get a delta."""
    patterns: tuple[RankPatternConfig, ...] = ()
    """Other ranks for some layers; the first one that fits counts."""
    variant: Literal["lora", "dora"] = "lora"
    """dora also trains the length of each weight's rows (arXiv 2402.09353)."""

    def __post_init__(self) -> None:
        """Refuse ranks that are none."""
        if self.rank < 1 or self.text_rank < 0:
            raise ValueError(
                f"rank is {self.rank} and text_rank {self.text_rank} - expected at least 1, and 0 "
                "or more for the text encoders."
            )


@dataclass(frozen=True)
class DreamBoothConfig:
    """DreamBooth (arXiv 2208.12242): the whole denoiser learns the subject."""

    kind: Literal["dreambooth"] = "dreambooth"
    parts: Literal["unet", "unet_and_text"] = "unet"
    """What is trained: the denoiser, or the text encoders too (better faces, easier to overfit)."""
    text_learning_rate: float = 2e-6
    """Learning rate of the text encoders."""
    batch: BatchConfig = BatchConfig()
    """What one batch is made of."""
    class_images: ClassImagesConfig = ClassImagesConfig()
    """Prior preservation."""
    loop: TuningConfig = DREAMBOOTH_LOOP
    """Length, learning rate and bookkeeping."""


@dataclass(frozen=True)
class DreamBoothLoraConfig:
    """DreamBooth with low-rank deltas instead of a whole new denoiser."""

    kind: Literal["dreambooth_lora"] = "dreambooth_lora"
    lora: LoraShapeConfig = LoraShapeConfig()
    """Which layers get deltas."""
    text_learning_rate: float = 5e-6
    """Learning rate of the text encoders' deltas."""
    batch: BatchConfig = BatchConfig()
    """What one batch is made of."""
    class_images: ClassImagesConfig = ClassImagesConfig(count=0)
    """Prior preservation."""
    loop: TuningConfig = LORA_LOOP
    """Length, learning rate and bookkeeping."""


@dataclass(frozen=True)
class DcoConfig:
    """Direct consistency optimisation (DCO): learn the subject only as far as the prior allows."""

    kind: Literal["dco"] = "dco"
    beta: float = 1000.0
    """Strength of the pull back to the prior: the step fades once the subject is explained better
    than the prior explains it by much more than 1 / beta. 1000 to 2000 in the authors' code."""
    lora: LoraShapeConfig = LoraShapeConfig(rank=32)
    """Which layers get deltas; 32 for a subject, 64 for a style."""
    text_learning_rate: float = 5e-6
    """Learning rate of the text encoders' deltas and of the placeholder's rows."""
    batch: BatchConfig = BatchConfig(size=1)
    """What one batch is made of; the sigmoid is taken per photo."""
    loop: TuningConfig = DCO_LOOP
    """Length, learning rate and bookkeeping; 2000 steps for five photos of a subject, 1000 for one
    picture of a style."""

    def __post_init__(self) -> None:
        """Refuse a pull that does not pull, and weights that the loss has no place for."""
        if self.beta <= 0.0:
            raise ValueError(f"beta is {self.beta} - expected above 0.")
        if self.batch.min_snr_gamma is not None:
            raise ValueError(
                f"batch.min_snr_gamma is {self.batch.min_snr_gamma} - expected none: DCO compares "
                "plain errors."
            )
