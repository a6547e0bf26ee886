"""Configuration of fields and renderers: plain frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HashGridConfig", "OccupancyConfig"]


@dataclass(frozen=True)
class HashGridConfig:
    """Multiresolution hash encoding (Instant-NGP, arXiv 2201.05989)."""

    n_levels: int = 16
    """Number of resolution levels L."""
    n_features: int = 2
    """Features per level F."""
    log2_hashmap_size: int = 19
    """Base-2 logarithm of the table size T of each level."""
    base_resolution: int = 16
    """Resolution of the coarsest level, cells along one axis."""
    finest_resolution: int = 2048
    """Resolution of the finest level, cells along one axis."""


@dataclass(frozen=True)
class OccupancyConfig:
    """Occupancy grid that lets the ray marcher skip empty space."""

    resolution: int = 64
    """Cells along one axis."""
    update_every: int = 16
    """Steps between two updates."""
    ema_decay: float = 0.95
    """Factor on the remembered density at each update."""
    threshold: float = 0.01
    """A cell is occupied where density times step size exceeds min(threshold, mean)."""
