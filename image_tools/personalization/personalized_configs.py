"""Which personalized results a prior uses, and how: fields of scene files, free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["EmbeddingUseConfig", "GuidanceMix", "LoraUseConfig", "SubjectConfig"]

GuidanceMix = Literal["plain", "consistency"]


@dataclass(frozen=True)
class LoraUseConfig:
    """A LoRA file on the prior."""

    path: str
    """A .safetensors file of any layout, or a folder with pytorch_lora_weights.safetensors."""
    weight: float = 1.0
    """Factor of its deltas; 0 switches them off. Words bundled with it stay known."""


@dataclass(frozen=True)
class EmbeddingUseConfig:
    """A Textual Inversion file on the prior."""

    path: str
    """A .safetensors, .pt or .bin file of any layout."""
    token: str | None = None
    """The word in prompts that means it; empty for the file's own."""
    fix_eos: bool | None = None
    """Take SDXL's pooled vector at the end token. Empty for as the word was learned: what a file of
    ours says, otherwise on for pairs clip_l and clip_g (kohya, A1111, ComfyUI), and off for other
    files and those that diffusers and DCO call learned_embeds. All words of a prior share it."""


@dataclass(frozen=True)
class SubjectConfig:
    """What a prior was taught about one subject or style."""

    loras: tuple[LoraUseConfig, ...] = ()
    """LoRAs that act together."""
    embeddings: tuple[EmbeddingUseConfig, ...] = ()
    """Words that prompts may use."""
    weights: str | None = None
    """Weights of a full DreamBooth: a checkpoint of studio's training (checkpoints/step-*), as it
    was after some of its steps. For a whole diffusers folder set the base prior instead."""
    weights_from: str | None = None
    """Folder of the model, in diffusers layout, that the weights were trained from, where the prior
    is another that was trained from it too, such as a multi-view model: what was learned is added
    to the prior's own weights. Empty where the weights were trained from the prior itself."""
    token: str | None = None
    """How prompts name the subject, such as <my-dog> or sks dog; for consistency guidance."""
    word: str | None = None
    """What the untrained prior reads instead, such as dog; for consistency guidance."""
    consistency_scale: float = 3.0
    """Weight of this subject's term in consistency guidance: 3 for images beside a guidance scale
    of 7.5, 10 to 30 in 3D beside 30 to 100."""

    def __post_init__(self) -> None:
        """Refuse a subject without content or with half a name."""
        if not (self.loras or self.embeddings or self.weights):
            raise ValueError(
                "a subject has neither loras nor embeddings nor weights - expected at least one."
            )
        if self.weights_from is not None and self.weights is None:
            raise ValueError("weights_from is given without weights - expected both, or none.")
        if (self.token is None) != (self.word is None):
            raise ValueError(
                f"token is {self.token!r} and word {self.word!r} - expected both: how prompts name "
                "the subject, and what kind of thing it is."
            )
