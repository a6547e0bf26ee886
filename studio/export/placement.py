"""From the world to the asset's frame: axes, height, origin.

World: +z up, front towards +x. glTF: +y up, front towards +z. The map (x, y, z) -> (y, z, x) is a
cyclic permutation, a rotation with determinant +1, so nothing is mirrored.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from studio.export.triangles import Triangles

__all__ = ["WORLD_TO_GLTF", "place", "standing_up"]

WORLD_TO_GLTF = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Rotation that takes world vectors to glTF vectors."""


def place(mesh: Triangles, *, height_m: float) -> Triangles:
    """Turn to glTF axes, scale to ``height_m`` and put the centre of the base at the origin."""
    v_pos = mesh.v_pos @ WORLD_TO_GLTF.T
    lower, upper = v_pos.min(axis=0), v_pos.max(axis=0)
    base = np.array([0.5 * (lower[0] + upper[0]), lower[1], 0.5 * (lower[2] + upper[2])])
    height = max(float(upper[1] - lower[1]), 1e-12)
    return Triangles((v_pos - base) * (height_m / height), mesh.t_pos_idx)


def standing_up(vectors: Float[np.ndarray, "n 3"], up: Literal["y", "z"]) -> np.ndarray:
    """Turn glTF vectors (+y up) to the up axis of another file."""
    return vectors if up == "y" else vectors @ WORLD_TO_GLTF
