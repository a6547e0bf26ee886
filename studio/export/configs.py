"""Configuration of the export: a plain frozen dataclass, importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["ExportConfig"]


@dataclass(frozen=True)
class ExportConfig:
    """From a trained scene to asset files: surface, clean-up, texture, formats."""

    formats: tuple[Literal["glb", "obj", "ply"], ...] = ("glb", "obj", "ply")
    """Files to write. GLB is the one to open and share; OBJ and PLY are for tools without glTF."""
    threshold: float | Literal["auto"] = "auto"
    """Density of the surface, per world unit. ``auto`` picks the level whose silhouettes and depths
    agree best with the field's own rendering. Ignored by signed distance fields (level 0)."""
    resolution: int = 128
    """Grid cells along the longest side of the object's bounding box."""
    search_resolution: int = 64
    """Grid cells along the whole scene in the first pass, which finds the threshold and the box."""
    blur_cells: float = 1.5
    """Standard deviation, in grid cells, of the blur that takes the noise of the hash grid out of
    the surface; 0 keeps every bump."""
    min_component: float = 0.04
    """Parts below this fraction of the largest part's volume and area that touch nothing larger are
    floaters; 0 keeps all."""
    max_faces: int = 20_000
    """Triangles after decimation. It comes before UV unwrapping, whose time grows faster than
    this."""
    remesh: Literal["none", "isotropic", "poisson"] = "none"
    """Other triangles for the same surface (extra: geometry). ``isotropic``: even triangles,
    openings closed (pymeshlab). ``poisson``: one closed, smoother surface (open3d)."""
    appearance: Literal["texture", "vertex"] = "texture"
    """Where the colours go: a UV texture, or one colour per vertex (smaller, coarser)."""
    texture_size: int = 1024
    """Side of the square texture in pixels."""
    unwrap_budget_s: float = 120.0
    """Seconds allowed for UV unwrapping; past it every triangle gets its own patch of the
    texture."""
    shell_cells: float = 2.0
    """A ray along the inward normal gathers the colour of a texel, as the renderer's do; it begins
    so many grid cells outside. 0 takes the colour exactly at the surface."""
    shell_depth_cells: float = 8.0
    """It ends so many grid cells inside, sooner where the field is dense."""
    crease_deg: float = 40.0
    """Edges sharper than this angle get separate normals on both sides (hard edges)."""
    height_m: float = 1.0
    """Height of the exported object, metres; the longest side of a sheet that lies flat."""
    up: Literal["y", "z"] = "y"
    """Up axis of OBJ and PLY files. GLB is always +y up, as glTF demands."""
    particle: int = 0
    """Which of the last stage's particles becomes the asset, counted from 0."""
    film_frames: int = 72
    """Views of the turntable film that a run ends with."""
    film_size: int = 512
    """Side of the film in pixels; the GIF has half of it."""

    def __post_init__(self) -> None:
        """Refuse values no export can be made with, naming every reason."""
        low = {
            "resolution": 8,
            "search_resolution": 8,
            "max_faces": 100,
            "texture_size": 16,
            "unwrap_budget_s": 0,
            "blur_cells": 0,
            "shell_cells": 0,
            "shell_depth_cells": 0,
            "min_component": 0,
            "crease_deg": 0,
            "particle": 0,
            "film_frames": 1,
            "film_size": 16,
        }
        high = {
            "resolution": 512,
            "search_resolution": 256,
            "texture_size": 8192,
            "blur_cells": 5,
            "min_component": 1,
            "crease_deg": 180,
            "film_frames": 10_000,
            "film_size": 4096,
        }
        problems = [
            f"{name} is {getattr(self, name)} - expected at least {least}."
            for name, least in low.items()
            if not getattr(self, name) >= least
        ]
        problems += [
            f"{name} is {getattr(self, name)} - expected at most {most}."
            for name, most in high.items()
            if getattr(self, name) > most
        ]
        if not 0.0 < self.height_m < math.inf:
            problems.append(f"height_m is {self.height_m} - expected a length above 0, in metres.")
        if self.threshold != "auto" and not 0.0 < self.threshold < math.inf:
            problems.append(f"threshold is {self.threshold} - expected auto or a density above 0.")
        if not self.formats:
            problems.append("formats is empty - expected some of glb, obj, ply.")
        if problems:
            raise ValueError(" ".join(problems))
