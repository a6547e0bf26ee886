"""Configuration of edits by the delta denoising score: frozen dataclasses, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from guidance.configs import TimestepsConfig, UniformTimestepsConfig, Weighting
from guidance.schedules import ScheduleValue, check_schedule
from renderers.box_configs import BoxConfig

__all__ = [
    "BoxMaskConfig",
    "DeltaEditConfig",
    "EverywhereConfig",
    "SharedAttentionConfig",
    "WordMaskConfig",
]

PUBLISHED_TIMESTEPS = UniformTimestepsConfig(min_t=0.05, max_t=0.95)


@dataclass(frozen=True)
class EverywhereConfig:
    """The edit may change everything."""

    kind: Literal["everywhere"] = "everywhere"
    """Tag of this choice."""


@dataclass(frozen=True)
class WordMaskConfig:
    """The edit acts where the words that change are seen: ``edit.word`` of the source prompt in the
    original, and what stands for it in the scene's prompt in the edited scene (LocalBlend of
    Prompt-to-Prompt, arXiv 2208.01626, section 3.2). Words with an adjective, such as red mushroom,
    are found better than a noun alone."""

    kind: Literal["word"] = "word"
    """Tag of this choice."""
    threshold: float = 0.5
    """A place belongs to the words above this share of their largest attention."""
    keep_word: str = ""
    """Words of both prompts that name what must stay: places that see more of them, each relative
    to its own mean, are left out; empty compares with nothing."""
    widen: int = 1
    """Latents by which the words' attention is widened on each side."""
    t: float = 0.3
    """Timestep at which the words are looked for, as a share of the training length."""
    levels: tuple[int, ...] = (0, 1)
    """Halvings of the latents to the decoder's and middle layers whose attention counts. Stable
    Diffusion: 1 and 2; pocket: 0 and 1."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("threshold", "t"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1, a share.")
        if self.widen < 0:
            raise ValueError(f"widen is {self.widen} - expected 0 or more latents.")


@dataclass(frozen=True)
class BoxMaskConfig:
    """The edit acts where a box is seen, whatever stands before it."""

    box: BoxConfig
    """What may change lies in it."""
    kind: Literal["box"] = "box"
    """Tag of this choice."""


@dataclass(frozen=True)
class SharedAttentionConfig:
    """In noisy views the edited scene's prediction looks where the original's does, which keeps
    shapes (Prompt-to-Prompt, arXiv 2208.01626, section 3.2)."""

    align: Literal["replace", "refine"] = "refine"
    """replace pairs both prompts word by word, refine the words that they have in common."""
    cross: float = 0.8
    """Share of the timesteps, from the noisiest on, in which words look where the source's do."""
    own: float = 0.4
    """The same for the image's attention to itself."""
    own_max_tokens: int | None = None
    """Largest layer, in image tokens, whose attention to itself is shared; empty for a quarter of
    the latents' rows and columns, at least 256."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        for name in ("cross", "own"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)} - expected 0 to 1, a share.")


EditMaskConfig = EverywhereConfig | WordMaskConfig | BoxMaskConfig


@dataclass(frozen=True)
class DeltaEditConfig:
    """Edit of a finished run by its prompt: delta denoising score (arXiv 2304.07090) between
    renders of the edited scene and of the original. For scenes with ``edit``."""

    kind: Literal["delta_edit"] = "delta_edit"
    """Tag of this choice."""
    guidance_scale: float = 7.5
    """s in eps_u + s (eps_c - eps_u), for both prompts (the paper's value)."""
    weighting: Weighting = "uniform"
    """w(t): uniform = 1 (the paper), sds = 1 - alpha_bar, fantasia3d = sqrt(alpha_bar) (1 -
    alpha_bar)."""
    timesteps: TimestepsConfig = PUBLISHED_TIMESTEPS
    """How timesteps are chosen."""
    mask: EditMaskConfig = field(default_factory=EverywhereConfig)
    """Where the edit may act."""
    keep: ScheduleValue = 0.0
    """Weight of the squared difference to the original's renders outside of the mask, summed over
    pixels; with a mask everywhere it does nothing."""
    attention: SharedAttentionConfig | None = None
    """How far the edited scene's prediction shares the original's attention; empty for not at all,
    as published. With it, equal scenes have a difference of rounding in the place of 0."""
    grad_clip: ScheduleValue | None = None
    """Largest absolute value of each entry of the latent gradient; empty does not clip."""

    def __post_init__(self) -> None:
        """Refuse weights and clip values below 0."""
        check_schedule("keep", self.keep, low=0.0)
        if self.grad_clip is not None:
            check_schedule("grad_clip", self.grad_clip, low=0.0)
