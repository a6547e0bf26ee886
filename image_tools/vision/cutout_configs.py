"""Settings of cutting a thing out of photos, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CutoutConfig"]


@dataclass(frozen=True)
class CutoutConfig:
    """How the thing that all photos show is told from what is around it. All numbers are ours."""

    size: int = 128
    """Longer side, in pixels, at which it is decided."""
    iterations: int = 6
    """How often colours and pixels take turns."""
    thing_colors: int = 8
    """Gaussians of the thing's colours, in all photos together."""
    around_colors: int = 6
    """Gaussians of the surroundings' colours, in each photo."""
    frame: float = 0.03
    """Share of a photo's side, at its border, that is surroundings for sure."""
    contrast: float = 1.5
    """How much an edge of colour separates neighbours."""
    data: float = 0.02
    """Weight of a pixel's own colour against its neighbours."""
    fill: float | None = None
    """Share of the image's side that the longer side of the thing takes afterwards, in the middle;
    empty leaves it where it was. Photos show much around a thing, renders little."""
    ground: Literal["white", "colors"] = "white"
    """What takes the place of the surroundings: white, or for each photo a plain colour that the
    thing does not have. A prior learns a pale thing on white without its outline."""
    seed: int = 0
    """Seed of the groups of colours, and of grounds."""

    def __post_init__(self) -> None:
        """Refuse a thing without size."""
        if self.fill is not None and not 0.1 <= self.fill <= 1.0:
            raise ValueError(f"fill is {self.fill} - expected 0.1 to 1, or nothing.")
