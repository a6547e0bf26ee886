"""What a field is to a renderer, and what it returns at a batch of points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["Field", "FieldSamples"]


@dataclass(frozen=True)
class FieldSamples:
    """Values of a field at ``n`` points; the optional parts are None unless asked for."""

    sigma: Float[Tensor, " n"]
    """Volume density, per world unit."""
    albedo: Float[Tensor, "n 3"]
    """Base colour, 0..1, display-referred."""
    normal: Float[Tensor, "n 3"] | None = None
    """Unit outward normals, world axes."""
    gradient: Float[Tensor, "n 3"] | None = None
    """Spatial gradient of the signed distance (signed distance fields only)."""


@runtime_checkable
class Field(Protocol):
    """Density and colour in ``[-radius, radius]^3``; renderers need nothing else of a field."""

    radius: float

    def set_fraction(self, fraction: float) -> None:
        """Adapt to the progress of the stage, 0 to 1."""

    def density(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Volume density, per world unit."""

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Base colour, 0..1."""

    def query(self, x: Float[Tensor, "n 3"]) -> FieldSamples:
        """Density and albedo."""

    def query_with_normals(self, x: Float[Tensor, "n 3"]) -> FieldSamples:
        """Density, albedo and unit outward normals."""
