"""Configuration of self-guidance: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CopyAppearanceConfig",
    "CopyLayoutConfig",
    "MoveConfig",
    "ResizeConfig",
    "RestyleConfig",
    "SelfGuidanceConfig",
    "SelfGuidanceEdit",
    "SelfGuidanceStrengthConfig",
]

Words = tuple[str | int, ...]


def _check_named(words: Words) -> None:
    """Refuse an edit of no thing: the mean over no words' maps is no number.

    Raises:
        ValueError: there are no words.
    """
    if not words:
        raise ValueError(
            "words is empty - expected at least one word of the prompt. Name the thing that is "
            "edited."
        )


@dataclass(frozen=True)
class MoveConfig:
    """Move a thing; everything else keeps its shape, and all keep their appearance."""

    words: Words
    """Words of the prompt that name the thing."""
    shift: tuple[float, float]
    """How far, right and down, as shares of the image's width and height."""
    kind: Literal["move"] = "move"
    weight: float = 1.0
    """Of the moved thing's shape and centre; the reference code's 0.5 to 3."""
    keep_weight: float = 1.0
    """Of everything else's shape; words attract each other's things, so all must be held. 0 where
    the prompt names one thing: its other words lie on that thing too, and hold it in place."""
    appearance_weight: float = 0.1
    """Of how everything looks; depends on the model's features."""

    def __post_init__(self) -> None:
        """Refuse no words."""
        _check_named(self.words)


@dataclass(frozen=True)
class ResizeConfig:
    """Make a thing larger or smaller around its centre; everything else keeps its shape, and all
    keep their appearance."""

    words: Words
    """Words of the prompt that name the thing."""
    scale: float
    """Factor of its width and height."""
    kind: Literal["resize"] = "resize"
    weight: float = 1.0
    """Of the resized thing's shape and size."""
    keep_weight: float = 1.0
    """Of everything else's shape; 0 where the prompt names one thing."""
    appearance_weight: float = 0.1
    """Of how everything looks."""

    def __post_init__(self) -> None:
        """Refuse no words, and a size of nothing."""
        _check_named(self.words)
        if self.scale <= 0.0:
            raise ValueError(f"scale is {self.scale} - expected a factor above 0.")


@dataclass(frozen=True)
class RestyleConfig:
    """Keep where and how everything stands, while the prompt says what it looks like."""

    words: Words = ()
    """Words whose shapes are kept; empty for all."""
    kind: Literal["restyle"] = "restyle"
    weight: float = 1.0
    """Of the shapes."""


@dataclass(frozen=True)
class CopyAppearanceConfig:
    """Let a thing look like the reference's thing, wherever it stands."""

    words: Words
    """Words of the prompt that name the thing."""
    source_words: Words = ()
    """Words of the reference's prompt; empty for the same words, where a number is the word that
    the reference's prompt has in its place."""
    kind: Literal["copy_appearance"] = "copy_appearance"
    weight: float = 0.1
    """Of the appearance; the reference code's 0.03 to 0.3, which depends on the features."""

    def __post_init__(self) -> None:
        """Refuse no words."""
        _check_named(self.words)


@dataclass(frozen=True)
class CopyLayoutConfig:
    """Let a thing stand where and as the reference's thing does, whatever it looks like."""

    words: Words
    """Words of the prompt that name the thing."""
    source_words: Words = ()
    """Words of the reference's prompt; empty for the same words, where a number is the word that
    the reference's prompt has in its place."""
    kind: Literal["copy_layout"] = "copy_layout"
    weight: float = 1.0
    """Of the shape."""

    def __post_init__(self) -> None:
        """Refuse no words."""
        _check_named(self.words)


SelfGuidanceEdit = (
    MoveConfig | ResizeConfig | RestyleConfig | CopyAppearanceConfig | CopyLayoutConfig
)


@dataclass(frozen=True, kw_only=True)
class SelfGuidanceStrengthConfig:
    """How strongly self-guidance acts, in which steps, and where it looks."""

    scale: float = 500.0
    """v of v sigma_t grad g; 0 switches it off. Depends on the model's latents: 500 to 7500 for
    Stable Diffusion; for pocket 1500 to resize and 3000 to move."""
    sigma_weight: Literal["none", "sigma", "one_minus_alpha_bar"] = "sigma"
    """Weight of the gradient at timestep t: the paper's sigma, none, or 1 - alpha_bar."""
    full_steps: float = 0.1875
    """Share of the steps that are all guided, from the beginning (paper: 3/16)."""
    alternating_steps: float = 0.78125
    """Share of the steps after these of which every second is guided (paper: 25/32)."""
    levels: tuple[int, ...] = (0, 1)
    """Halvings of the latents to the decoder's and middle layers whose attention counts. SDXL at
    1024 px: 2; Stable Diffusion: 1 and 2; pocket: 0 and 1."""
    features: str = "up_blocks.-1"
    """Part of the denoiser whose output is the appearance: a path, where -1 is the last."""
    distance: Literal["l1", "l2"] = "l1"
    """How image and reference are compared: by the mean of absolute differences (paper), or of
    squared ones, which pull harder where much is wrong and want weights of their own."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("full_steps", "alternating_steps"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1, a share.")


@dataclass(frozen=True)
class SelfGuidanceConfig(SelfGuidanceStrengthConfig):
    """Diffusion self-guidance (arXiv 2306.00986)."""

    prompt: str
    """The prompt that is sampled."""
    edits: tuple[SelfGuidanceEdit, ...]
    """What is changed in comparison with the reference; all act together."""
    reference_prompt: str | None = None
    """The reference image's prompt; empty for the same."""
    steps: int = 50
    """Steps of the sampler, which shares refer to."""

    def __post_init__(self) -> None:
        """Refuse no edit, and shares that are none."""
        super().__post_init__()
        if not self.edits:
            raise ValueError("edits is empty - expected at least one.")
