"""Kinds of garments and what try-on models call them; importable without torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["BODY_PARTS", "BodyPart", "GarmentCategory"]

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
