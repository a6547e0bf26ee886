"""Boxes in the scene and a start of the density in them, as frozen dataclasses without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BoxConfig", "BoxesBlobConfig"]

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class BoxConfig:
    """An axis-aligned box."""

    center: Vector
    """Middle of the box, world units: +x is the front, +y the right as seen from there, +z up."""
    size: Vector
    """Length of its edges along x, y and z, world units."""

    def __post_init__(self) -> None:
        """Refuse a box without volume."""
        if min(self.size) <= 0.0:
            raise ValueError(f"size is {list(self.size)} - expected three lengths above 0.")


@dataclass(frozen=True)
class BoxesBlobConfig:
    """Initial density softplus(scale (1 - r)) around the middles of boxes, r being 1 on the
    ellipsoid that fills a box; where boxes meet, the larger density counts."""

    kind: Literal["blob_boxes"] = "blob_boxes"
    """Tag of this choice."""
    scale: float = 5.0
    """Pre-activation density in the middle of each box."""
    floor: float = -5.0
    """Pre-activation density far from all boxes, so that distant space can still be filled."""
    wall: float = 0.0
    """How much the pre-activation density falls with each world unit outside of all boxes, below
    the rest: keeps matter in the boxes where no view shows what is outside."""
    boxes: tuple[BoxConfig, ...] = ()
    """The boxes; empty for those of the scene's layout."""

    def __post_init__(self) -> None:
        """Refuse a start that is no higher in a box than outside."""
        if not self.wall >= 0.0:
            raise ValueError(f"field.blob.wall is {self.wall} - expected 0 or more.")
        if self.floor >= self.scale:
            raise ValueError(
                f"field.blob.floor is {self.floor} - expected less than the scale {self.scale}."
            )
