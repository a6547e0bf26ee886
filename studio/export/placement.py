"""From the world to the asset's frame: axes, height, origin.

World: +z up, front towards +x. glTF: +y up, front towards +z. The map (x, y, z) -> (y, z, x) is a
cyclic permutation, a rotation with determinant +1, so nothing is mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from studio.export.triangles import Triangles

__all__ = ["WORLD_TO_GLTF", "SceneFrame", "place", "standing_up"]

WORLD_TO_GLTF = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rotation that takes world vectors to glTF vectors."""


# A surface that is lower than this share of its longest side lies flat: it has no height to scale.
FLAT_FRACTION = 1e-3


@dataclass(frozen=True)
class SceneFrame:
    """How the asset stands in the world: glTF position = (axes(world) - base) * scale."""

    scale: float
    """Metres per world unit."""
    base: tuple[float, float, float]
    """Centre of the object's base, world units along glTF axes."""


def place(mesh: Triangles, *, height_m: float) -> tuple[Triangles, SceneFrame]:
    """Turn to glTF axes, scale to ``height_m`` and put the centre of the base at the origin.

    A sheet that lies flat gets ``height_m`` along its longest side. Vertices of no face, which
    files may hold and pictures do not show, count for nothing.
    """
    v_pos = mesh.v_pos @ WORLD_TO_GLTF.T
    seen = v_pos[np.unique(mesh.t_pos_idx)]
    lower, upper = seen.min(axis=0), seen.max(axis=0)
    base = (float(lower[0] + upper[0]) / 2, float(lower[1]), float(lower[2] + upper[2]) / 2)
    size = upper - lower
    tall = size[1] > FLAT_FRACTION * size.max()
    scale = height_m / float(size[1] if tall else size.max())
    placed = Triangles((v_pos - np.array(base)) * scale, mesh.t_pos_idx)
    return placed, SceneFrame(scale, base)


def standing_up(vectors: Float[np.ndarray, "n 3"], up: Literal["y", "z"]) -> np.ndarray:
    """Turn glTF vectors (+y up) to the up axis of another file."""
    return vectors if up == "y" else vectors @ WORLD_TO_GLTF
