"""Colour words of the toybox and the fixed colours of parts (display-referred RGB)."""

from __future__ import annotations

__all__ = ["COLORS", "CREAM", "DARK", "GLASS", "GOLD", "GREY", "LEAF", "SNOW", "WOOD"]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.12, 0.62, 0.18),
    "blue": (0.10, 0.28, 0.85),
    "yellow": (0.96, 0.84, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "purple": (0.50, 0.14, 0.70),
    "pink": (0.97, 0.52, 0.72),
    "white": (0.93, 0.93, 0.93),
    "black": (0.08, 0.08, 0.09),
    "brown": (0.44, 0.25, 0.11),
}

WOOD = (0.55, 0.36, 0.18)
GREY = (0.52, 0.53, 0.55)
DARK = (0.12, 0.12, 0.14)
LEAF = (0.16, 0.50, 0.16)
CREAM = (0.93, 0.86, 0.70)
GLASS = (0.62, 0.80, 0.92)
SNOW = (0.96, 0.96, 0.96)
GOLD = (0.90, 0.72, 0.22)
