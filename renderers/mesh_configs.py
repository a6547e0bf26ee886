"""Configuration of meshes and their renderer: frozen dataclasses, importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from renderers.camera_configs import check_between, check_positive

__all__ = ["GridTetsConfig", "MeshRendererConfig"]


@dataclass(frozen=True)
class GridTetsConfig:
    """Marching tetrahedra on a grid with learned distances and offsets (arXiv 2111.04276).

    As the field of a later stage it takes the surface and the colours of the stage before.
    """

    kind: Literal["grid_tets"] = "grid_tets"
    """Tag of this choice."""
    resolution: int = 64
    """Cubes along one axis, six tetrahedra each."""
    offset_reach: float = 0.5
    """Largest displacement of a grid point, in cubes; above 0.5 tetrahedra may turn inside out."""
    threshold: float | Literal["auto"] = "auto"
    """Density that becomes the surface, per world unit; ``auto`` picks the level whose silhouettes
    and depths agree best with the field's own rendering. Distance fields ignore it (level 0)."""
    smoothing: float = 1.0
    """Standard deviation, in cubes, of the low-pass that takes the noise of the hash grid out of
    the first surface; parts thinner than about twice this are lost."""
    min_component: float = 0.04
    """Parts below this fraction of the largest part's volume are floaters, left out of the first
    surface; 0 keeps all."""

    def __post_init__(self) -> None:
        """Check sizes and the threshold."""
        check_between("field", 4, 512, resolution=self.resolution)
        check_between("field", 0.0, 1.0, offset_reach=self.offset_reach)
        check_between("field", 0.25, 8.0, smoothing=self.smoothing)
        check_between("field", 0.0, 1.0, min_component=self.min_component)
        if self.threshold != "auto" and not 0.0 < self.threshold < math.inf:
            raise ValueError(
                f"field.threshold is {self.threshold}, expected auto or a density above 0. "
                "Set field.threshold=auto."
            )


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

    def __post_init__(self) -> None:
        """Check counts and planes."""
        check_positive("renderer", supersample=self.supersample)
        check_between("renderer", 1e-6, self.far, near=self.near)
