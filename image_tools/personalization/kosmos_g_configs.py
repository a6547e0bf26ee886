"""Configuration of KOSMOS-G (arXiv 2310.02992): the tool, its aligner and its trainers.

Importable without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.kosmos_g_words import (
    InterleavedPromptError,
    check_image_count,
    without_images,
)
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.reference_contract import ReferenceToolSettings

__all__ = [
    "AlignTrainingConfig",
    "AlignerSettings",
    "InstructionTuningConfig",
    "KosmosGConfig",
]

# As in runalign.sh and runtrain.sh of the public code (microsoft/unilm, kosmos-g).
ALIGNING = TuningConfig(
    steps=300_000,
    learning_rate=1e-3,
    schedule="linear",
    warmup_steps=375,
    betas=(0.9, 0.98),
    epsilon=1e-6,
    weight_decay=0.01,
    clip_norm=2.0,
)
TUNING = TuningConfig(
    steps=200_000,
    learning_rate=1e-3,
    schedule="linear",
    warmup_steps=375,
    betas=(0.9, 0.98),
    epsilon=1e-6,
    weight_decay=0.01,
    clip_norm=2.0,
)


@dataclass(frozen=True)
class KosmosGConfig(ReferenceToolSettings):
    """Prompts with images among their words, for Stable Diffusion 1.x (arXiv 2310.02992)."""

    weights: str
    """Folder with mllm, aligner and tokenizer, as the converter of the public checkpoint writes it
    (docs/reference_images.md). Research only, and not shipped."""
    kind: Literal["kosmos_g"] = "kosmos_g"
    images: tuple[str, ...] = ()
    """Image files, one for each <i> of the prompt, in their order. Without any, the prompt is read
    by the language model alone."""
    fit: Literal["crop", "pad"] = "crop"
    """crop takes the middle square of each image, as the authors do; pad all of it."""

    def pictures(self) -> list[tuple[str, str]]:
        """The images."""
        return [(f"images.{k}", path) for k, path in enumerate(self.images)]

    def models(self) -> list[tuple[str, str]]:
        """The folder."""
        return [("weights", self.weights)]

    def problems(self, prompt: str) -> list[str]:
        """A prompt that names another number of images."""
        try:
            check_image_count(prompt, len(self.images))
        except InterleavedPromptError as error:
            return [f"images: {error}"]
        return []

    def plain_prompt(self, prompt: str) -> str:
        """The prompt's words alone."""
        return without_images(prompt)


@dataclass(frozen=True)
class AlignerSettings:
    """Sizes of the aligner; the defaults are the public checkpoint's."""

    input_width: int = 2048
    """Width of the language model's states."""
    width: int = 768
    """Width of the prior's text states: 768 for Stable Diffusion 1.x, 384 for pocket."""
    queries: int = 77
    """Text states that are made: 77 for Stable Diffusion 1.x, 24 for pocket."""
    layers: int = 12
    """Layers of each of the two halves."""
    heads: int = 12
    """Attention heads."""
    ffn_width: int = 3072
    """Width inside the feed-forward networks."""
    positions: int = 32768
    """Rows of the learned positions, two more than the longest prompt."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        for name in ("input_width", "width", "queries", "layers", "heads", "ffn_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least 1.")
        if self.width % self.heads:
            raise ValueError(
                f"width is {self.width} with {self.heads} heads - expected a multiple of heads."
            )


@dataclass(frozen=True)
class AlignTrainingConfig:
    """How the aligner learns to speak as the prior's text encoder ("image decoder aligning")."""

    loop: TuningConfig = ALIGNING
    """Length and learning rate, as the authors train."""
    batch_size: int = 56
    """Captions of a batch."""
    reconstruction: float = 1.0
    """Weight of reading the language model's states back from the text states; the authors' factor
    of queries / tokens comes on top."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size} - expected at least 1.")
        if self.reconstruction < 0.0:
            raise ValueError(f"reconstruction is {self.reconstruction} - expected at least 0.")


@dataclass(frozen=True)
class InstructionTuningConfig:
    """How all of it learns from pictures, through the frozen denoiser ("instruction tuning")."""

    loop: TuningConfig = TUNING
    """Length and learning rate, as the authors train."""
    null_share: float = 0.1
    """Share of rows whose text is that of the empty prompt, so that guidance has something to lead
    away from."""
    checkpointing: bool = False
    """Recompute the denoiser's activations in the backward pass: less memory, more time, the same
    result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.null_share <= 1.0:
            raise ValueError(f"null_share is {self.null_share} - expected 0 to 1.")
