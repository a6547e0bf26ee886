"""Configuration of Textual Inversion, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.dreambooth_configs import BatchConfig
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.templates import (
    OBJECT_TEMPLATES,
    STYLE_TEMPLATES,
    check_templates,
)

__all__ = ["TextualInversionConfig"]

WORD_BATCH = BatchConfig()
WORD_LOOP = TuningConfig(steps=500, learning_rate=5e-3, warmup_steps=10, weight_decay=0.0)


@dataclass(frozen=True)
class TextualInversionConfig:
    """Textual Inversion (arXiv 2208.01618): a new word is all that learns."""

    kind: Literal["textual_inversion"] = "textual_inversion"
    token: str = "<my-thing>"
    """The new word as prompts will have it; not a word that the text encoder knows."""
    init_word: str = ""
    """What the subject is, in a word or two such as dog or teddy bear: the new word starts from its
    meaning. Must be given."""
    vectors: int = 1
    """Vectors behind the word, which is as many tokens long; more say more and generalise less."""
    learn: Literal["object", "style"] = "object"
    """Which captions go with the photos: of a thing, or of a style."""
    templates: tuple[str, ...] = ()
    """Captions of your own, with {} where the word goes; empty for the built-in ones."""
    norm: Literal["free", "init"] = "free"
    """init brings each vector back to its first length after every step, which keeps it among the
    lengths that the text encoder knows (as DCO does)."""
    reg_weight: float = 0.0
    """Weight of the squared distance to the first vectors; 0 in the paper's experiments."""
    fix_eos: bool = False
    """Take SDXL's pooled vector at the end token, as kohya, A1111 and ComfyUI do; off as diffusers
    and the code of DCO do. The word's file says it, and where it is used it counts."""
    batch: BatchConfig = WORD_BATCH
    """What one batch is made of."""
    loop: TuningConfig = WORD_LOOP
    """Length, learning rate and bookkeeping."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.vectors < 1:
            raise ValueError(f"vectors is {self.vectors} - expected at least 1.")
        if self.reg_weight < 0.0:
            raise ValueError(f"reg_weight is {self.reg_weight} - expected at least 0.")
        check_templates(self.templates)

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions in use, with {} where the word goes."""
        built_in = OBJECT_TEMPLATES if self.learn == "object" else STYLE_TEMPLATES
        return self.templates or built_in
