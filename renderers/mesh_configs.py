"""Configuration of meshes and their renderer: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["GridTetsConfig", "MeshRendererConfig"]


@dataclass(frozen=True)
class GridTetsConfig:
    """Marching tetrahedra on a grid with learned distances and offsets (arXiv 2111.04276)."""

    kind: Literal["grid_tets"] = "grid_tets"
    """Tag of this choice."""
    resolution: int = 64
    """Cubes along one axis, six tetrahedra each."""
    radius: float = 1.0
    """Half side of the grid, world units."""
    offset_reach: float = 0.5
    """Largest displacement of a grid point, in cubes; above 0.5 tetrahedra may turn inside out."""


@dataclass(frozen=True)
class MeshRendererConfig:
    """Rasterised triangle meshes with anti-aliased silhouettes."""

    kind: Literal["mesh"] = "mesh"
    """Tag of this choice."""
    backend: Literal["auto", "torch", "numba", "triton", "nvdiffrast"] = "auto"
    """Who finds the visible faces; ``auto`` takes the best one for the device."""
    supersample: int = 1
    """Rendered pixels per image pixel and axis; 2 keeps parts that are thinner than a pixel."""
    near: float = 0.05
    """Near plane, world units; faces that reach behind the camera are dropped."""
    far: float = 100.0
    """Far plane, world units."""
