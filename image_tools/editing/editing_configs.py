"""Configuration of edits by prompts: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "DeltaDenoisingConfig",
    "EditedPromptConfig",
    "LocalBlendConfig",
    "NullTextConfig",
    "NullTextLearningConfig",
    "PromptToPromptConfig",
    "WordStepsConfig",
    "WordWeightConfig",
]

# Delta denoising score: 0.1 times 2000 / (h w), published for Stable Diffusion at 512 pixels.
PUBLISHED_RATE = 200.0
PUBLISHED_LATENTS = 64 * 64


@dataclass(frozen=True)
class WordStepsConfig:
    """When one word of the edited prompt shares its attention with the source prompt."""

    word: str | int
    """A word of the edited prompt, or its place, from 0."""
    start: float = 0.0
    """First share of the steps."""
    end: float = 1.0
    """Last share of the steps."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        _check_shares(f"steps of word '{self.word}'", self.start, self.end)


@dataclass(frozen=True)
class WordWeightConfig:
    """How much more attention a word gets."""

    word: str | int
    """A word of the edited prompt, or its place, from 0."""
    weight: float = 2.0
    """Factor of its attention, not normalised: 2 to 5 for more, 0 or below for less. 1 changes
    nothing."""


@dataclass(frozen=True)
class EditedPromptConfig:
    """One edited version of the source prompt (arXiv 2208.01626, section 3.2)."""

    prompt: str
    """The edited prompt."""
    align: Literal["replace", "refine"] = "refine"
    """replace swaps word for word, for prompts of as many words (Eq. for word swap); refine keeps
    the tokens both prompts have in common, for added words. With the source prompt itself and
    weights, either reweights."""
    cross_steps: tuple[float, float] = (0.0, 0.8)
    """Shares of the steps between which words look where the source's words look. Longer keeps
    more of the layout; 0.8 for swaps, 0.5 to 0.8 for added words."""
    word_steps: tuple[WordStepsConfig, ...] = ()
    """Other steps for single words."""
    self_steps: tuple[float, float] = (0.0, 0.4)
    """Shares of the steps between which the image's own attention is the source's. Longer keeps
    more of the shapes; 0.4 for swaps, 0.2 to 0.4 for added words."""
    self_max_tokens: int | None = None
    """Largest layer, in image tokens, whose own attention is shared; empty for a quarter of the
    latents' rows and columns, at least 256: 16 x 16 for Stable Diffusion at 512 px, 24 x 24 at 768
    px, 32 x 32 for SDXL. 1024 for real images at 512 px."""
    word_weights: tuple[WordWeightConfig, ...] = ()
    """Words with more or less attention."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        _check_shares("cross_steps", *self.cross_steps)
        _check_shares("self_steps", *self.self_steps)


@dataclass(frozen=True)
class LocalBlendConfig:
    """Everything outside of the named words' places stays the source image's (section 3.2)."""

    words: tuple[tuple[str | int, ...], ...]
    """Words to edit: of the source prompt, then of each edited prompt."""
    keep_words: tuple[tuple[str | int, ...], ...] = ()
    """Words whose places are taken out again, in the same form; empty for none."""
    threshold: float = 0.3
    """A place belongs to the words above this share of their largest attention."""
    keep_threshold: float = 0.3
    """The same for keep_words."""
    start: float = 0.2
    """Share of the steps before the first blend; 1 for none at all."""
    level: int = 2
    """Halvings of the latents to the layers whose maps are used: 2 is 16 x 16 for Stable
    Diffusion at 512 px. pocket sees text at 0 and 1, of 16 x 16 and 8 x 8."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        _check_shares("start of blending", self.start, 1.0)
        if self.keep_words and len(self.keep_words) != len(self.words):
            raise ValueError(
                f"keep_words has {len(self.keep_words)} entries and words {len(self.words)} - "
                "expected as many: one for the source and one for each edited prompt."
            )


@dataclass(frozen=True)
class PromptToPromptConfig:
    """Edits of one image by its prompt (Prompt-to-Prompt, arXiv 2208.01626)."""

    source: str
    """The prompt of the image."""
    edits: tuple[EditedPromptConfig, ...]
    """What is made of it, all in one batch."""
    blend: LocalBlendConfig | None = None
    """Where edits are allowed; empty for everywhere."""
    steps: int = 50
    """Steps of the sampler, which shares refer to."""

    def __post_init__(self) -> None:
        """Refuse no edit, and words to blend that do not fit the prompts."""
        if not self.edits:
            raise ValueError("edits is empty - expected at least one edited prompt.")
        prompts = 1 + len(self.edits)
        if self.blend is not None and len(self.blend.words) != prompts:
            raise ValueError(
                f"words of the blend has {len(self.blend.words)} entries for {prompts} prompts - "
                "expected one for the source and one for each edited prompt."
            )


@dataclass(frozen=True)
class NullTextLearningConfig:
    """How the empty prompt's embedding is learned (arXiv 2211.09794, section 3.2)."""

    inner_steps: int = 10
    """Most updates of the empty prompt's embedding in each step."""
    learning_rate: float = 1e-2
    """Adam's rate at the first step; falls to half of it at the last."""
    tolerance: float = 1e-5
    """Mean squared error at which a step is done."""
    tolerance_growth: float = 1e-3
    """What the tolerance grows by from the first step to the last."""


@dataclass(frozen=True)
class NullTextConfig(NullTextLearningConfig):
    """Null-text inversion of a real image (arXiv 2211.09794, section 3.2)."""

    steps: int = 50
    """Steps of the sampler; the result fits this number only."""
    guidance_scale: float = 7.5
    """Guidance that edits will be sampled with; the result fits this scale only."""


@dataclass(frozen=True)
class DeltaDenoisingConfig:
    """Delta denoising score on the latents of one image (arXiv 2304.07090)."""

    updates: int = 200
    """Steps of gradient descent."""
    guidance_scale: float = 7.5
    """s in eps_u + s (eps_c - eps_u), for both prompts."""
    learning_rate: float | None = None
    """Step size over the number of latents of one channel, h w; the published rule is 200, 0.1 with
    a loss of 2000 / (h w). Empty for steps of 0.049 g on each latent whatever their number: that
    rule at 64 x 64, for which it was published. At 16 x 16 it would take steps of 0.8."""
    t_range: tuple[float, float] = (0.05, 0.95)
    """Timesteps are drawn between these shares of the training length."""

    def step_size(self, size: tuple[int, int]) -> float:
        """Factor of g in one update of latents of so many rows and columns."""
        if self.learning_rate is None:
            return PUBLISHED_RATE / PUBLISHED_LATENTS
        return self.learning_rate / (size[0] * size[1])


def _check_shares(name: str, start: float, end: float) -> None:
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError(
            f"{name} are {start} to {end} - expected 0 <= start <= end <= 1, shares of the steps."
        )
