"""Kinds of garments and what try-on models call them; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BODY_PARTS", "BodyPart", "GarmentCategory", "GarmentConfig"]

GarmentCategory = Literal[
    "upper", "lower", "pants", "skirt", "dress", "hat", "sunglasses", "shoes", "bag", "scarf"
]
"""lower stands for pants or skirt where a data set does not tell them apart."""

BodyPart = Literal["upper", "lower", "dress"]
"""What masks and most try-on models tell apart."""

BODY_PARTS: dict[GarmentCategory, BodyPart] = {
    "upper": "upper",
    "lower": "lower",
    "pants": "lower",
    "skirt": "lower",
    "dress": "dress",
}
"""Which part of the body a garment covers; accessories cover none."""


@dataclass(frozen=True)
class GarmentConfig:
    """One garment."""

    image: str
    """Product picture, on white as a rule; it is not stretched."""
    category: GarmentCategory
    """upper, lower, pants, skirt, dress, hat, sunglasses, shoes, bag or scarf. BootComp knows
    all of them, the others upper, lower and dress, and take pants and skirts for lower ones."""
    caption: str = ""
    """What it is in words, such as "short sleeve round neck t-shirt"; empty for its category."""

    @property
    def words(self) -> str:
        """The caption, or in its place the category."""
        return self.caption or self.category
