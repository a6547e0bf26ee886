"""Configuration of InstructPix2Pix's trainer and of its pairs, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["EditTrainingConfig", "PairFilterConfig", "PairGenerationConfig"]

LONG = TuningConfig(steps=20_000, learning_rate=1e-4)


@dataclass(frozen=True)
class EditTrainingConfig:
    """How an edit model is trained (arXiv 2211.09800, section 3.2 and appendix A)."""

    loop: TuningConfig = LONG
    """Length and learning rate; the authors' batch of 1024 wants ``accumulate``."""
    dropout: float = 0.05
    """Probability p to drop the instruction alone, the image alone, and both: 5 % each, so that
    both guidance scales have something to guide away from."""
    mirrored: float = 0.5
    """Share of pairs shown as mirror images, both together. 0 where instructions speak of left and
    right."""
    average_decay: float = 0.9999
    """Decay of the averaged weights, which are the result; 0 keeps the last ones."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0.0 <= self.dropout <= 1.0 / 3.0:
            raise ValueError(
                f"dropout is {self.dropout} - expected 0 to 1/3, because it comes three times."
            )
        if not 0.0 <= self.mirrored <= 1.0:
            raise ValueError(f"mirrored is {self.mirrored} - expected 0 to 1.")
        if not 0.0 <= self.average_decay < 1.0:
            raise ValueError(
                f"average_decay is {self.average_decay} - expected 0 up to 1, 1 excluded."
            )


@dataclass(frozen=True)
class PairGenerationConfig:
    """How a prior draws the two images of a pair (arXiv 2211.09800, section 3.1.2)."""

    samples: int = 100
    """Pairs drawn of each pair of captions, before the filter."""
    steps: int = 50
    """Denoising steps."""
    shared: tuple[float, float] = (0.1, 0.9)
    """Range of p, the share of the steps in which both images have one attention. How similar they
    should be depends on the edit, so each sample draws its own p."""
    guidance_scale: tuple[float, float] = (7.5, 15.0)
    """Range of the guidance scale, drawn likewise."""
    sharing: Literal["pixels", "words_and_pixels"] = "pixels"
    """pixels: the second image has the first one's attention among pixels, in both halves of
    guidance, as the authors' code has it. words_and_pixels: also to words, in the conditional half
    alone, which is Prompt-to-Prompt."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.samples < 1 or self.steps < 1:
            raise ValueError(
                f"samples is {self.samples}, steps {self.steps} - expected at least 1."
            )
        for name, top in (("shared", 1.0), ("guidance_scale", float("inf"))):
            low, high = getattr(self, name)
            if not 0.0 <= low <= high <= top:
                raise ValueError(
                    f"{name} is {low} to {high} - expected 0 <= low <= high <= {top:g}."
                )


@dataclass(frozen=True)
class PairFilterConfig:
    """Which generated pairs are kept (section 3.1.2); similarities are cosines."""

    image: float = 0.75
    """Least similarity of the two images."""
    text: float = 0.2
    """Least similarity of each image to its own caption."""
    direction: float = 0.2
    """Least similarity of the change of the images to the change of the captions."""
    keep: int = 4
    """At most so many pairs of each pair of captions, those with the best direction."""

    def __post_init__(self) -> None:
        """Refuse what are no cosines."""
        for name in ("image", "text", "direction"):
            if not -1.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected -1 to 1.")
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep} - expected at least 1.")
