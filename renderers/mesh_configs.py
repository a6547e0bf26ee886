"""Configuration of meshes and their renderer: frozen dataclasses, importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from renderers.camera_configs import check_between, check_positive
from renderers.configs import HashGridConfig

__all__ = ["GridTetsConfig", "MeshFileConfig", "MeshRendererConfig"]

SURFACE_GRID = HashGridConfig(finest_resolution=1024)


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
class MeshFileConfig:
    """A mesh from a file, whose shape stays as it is; a stage paints it with a colour field."""

    kind: Literal["mesh_file"] = "mesh_file"
    """Tag of this choice."""
    path: str = ""
    """The mesh: a GLB of this program, or any GLB, OBJ, PLY or STL. Its own colours are not used.
    It is read when the run starts; from then on the run folder holds it."""
    up: Literal["auto", "y", "z"] = "auto"
    """The file's axis that points up; auto is y for GLB and OBJ, z for PLY and STL."""
    sphere_radius: float | None = 0.85
    """The mesh is moved and scaled to fill a sphere of this radius around the scene's centre, world
    units; empty keeps its coordinates."""
    grid: HashGridConfig = SURFACE_GRID
    """Encoding of positions in the cube around the mesh."""
    hidden_layers: int = 1
    """Hidden layers of the network that makes colours of the encoding."""
    hidden_width: int = 64
    """Units of a hidden layer."""

    def __post_init__(self) -> None:
        """Check sizes."""
        if self.sphere_radius is not None:
            check_between("field", 1e-3, 1e3, sphere_radius=self.sphere_radius)
        check_positive("field", hidden_layers=self.hidden_layers, hidden_width=self.hidden_width)


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
