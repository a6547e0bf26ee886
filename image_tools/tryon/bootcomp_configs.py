"""BootComp (arXiv 2412.16978): its words, guidance and trainers, importable without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.reference_contract import ReferenceToolSettings
from image_tools.tryon.garment_configs import GarmentCategory, GarmentConfig

__all__ = [
    "COMPOSITION_WORDS",
    "WORDS",
    "BootCompConfig",
    "CompositionTrainingConfig",
    "DecompositionTrainingConfig",
    "GarmentsConfig",
    "unknown_categories",
]

WORDS: dict[GarmentCategory, str] = {
    "upper": "Upper garment",
    "pants": "Pants",
    "skirt": "Skirt",
    "dress": "Dress",
    "hat": "Hat",
    "sunglasses": "Sunglasses",
    "shoes": "Shoes",
    "bag": "Bag",
    "scarf": "Scarf",
}
"""What its decomposition calls garments; it tells pants from skirts."""
COMPOSITION_WORDS: dict[GarmentCategory, str] = {
    **WORDS,
    "upper": "upper garment",
    "lower": "lower garment",
}
"""What its composition calls them, which also knows the words of the released example. Capitals
mean nothing: text encoders read lower case."""

DECOMPOSITION = TuningConfig(steps=140_000, learning_rate=1e-5)
COMPOSITION = TuningConfig(steps=115_000, learning_rate=1e-5)


@dataclass(frozen=True)
class BootCompConfig:
    """BootComp (arXiv 2412.16978): several garments at once, on a new person or on a given one. The
    prior is any generator of the family that the encoder was trained beside."""

    encoder: str
    """Folder of the encoder of garments: comp of omniousai/BootComp, or one trained here."""
    kind: Literal["bootcomp"] = "bootcomp"
    garment_scale: float = 2.0
    """s_g, guidance by the garments; s_t is the sampler's guidance scale (the authors take 4)."""

    def models(self) -> list[tuple[str, str]]:
        """Weights by key."""
        return [("encoder", self.encoder)]


@dataclass(frozen=True)
class GarmentsConfig(ReferenceToolSettings):
    """Garments that people wear in pictures and on every side of 3D scenes (BootComp, arXiv
    2412.16978)."""

    encoder: str
    """Folder of the encoder of garments: comp of omniousai/BootComp, or one trained here."""
    garments: tuple[GarmentConfig, ...]
    """What is worn, all at once."""
    kind: Literal["garments"] = "garments"
    garment_scale: float = 2.0
    """s_g, guidance by the garments; s_t is the guidance scale of the sampler or the rule."""

    def __post_init__(self) -> None:
        """Refuse nothing to wear."""
        if not self.garments:
            raise ValueError("garments is empty - expected at least one, with image and category.")

    def pictures(self) -> list[tuple[str, str]]:
        """Product pictures."""
        return [(f"garments.{k}.image", one.image) for k, one in enumerate(self.garments)]

    def models(self) -> list[tuple[str, str]]:
        """The encoder."""
        return [("encoder", self.encoder)]

    def problems(self, prompt: str) -> list[str]:
        """Categories that it does not know."""
        return unknown_categories(self.garments, COMPOSITION_WORDS, "BootComp")


def unknown_categories(
    garments: Sequence[GarmentConfig], known: Mapping[GarmentCategory, str], model: str
) -> list[str]:
    """What is wrong with categories that a model does not know, by their keys."""
    return [
        f"garments.{k}.category: is {one.category!r}, which {model} does not know - expected "
        f"{', '.join(known)}."
        for k, one in enumerate(garments)
        if one.category not in known
    ]


@dataclass(frozen=True)
class DecompositionTrainingConfig:
    """How the network that makes product pictures of worn garments is trained (section 3.1)."""

    loop: TuningConfig = DECOMPOSITION
    """Length and learning rate; the paper's rate is not known to us."""
    dropout: float = 0.1
    """Share of samples whose garment is not shown (a latent of zeros), so that guidance has
    something to lead away from."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        _check_share("dropout", self.dropout)


@dataclass(frozen=True)
class CompositionTrainingConfig:
    """How the encoder of garments beside a frozen generator is trained (section 3.3)."""

    loop: TuningConfig = COMPOSITION
    """Length and learning rate; the paper's rate is not known to us."""
    dropout: float = 0.1
    """Share of samples without garments (features of zeros)."""
    text_dropout: float = 0.1
    """Share of samples without text."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same result."""

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        _check_share("dropout", self.dropout)
        _check_share("text_dropout", self.text_dropout)


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value} - expected 0 to 1.")
