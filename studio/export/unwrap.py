"""Texture coordinates: xatlas within a time budget, or one patch per triangle.

xatlas (MIT) makes few, large charts, but its time grows faster than the number of triangles and a
C++ call cannot be interrupted; so it runs in a process of its own, which is ended when the budget
is over.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from studio.export.triangles import Triangles

__all__ = ["Atlas", "patch_atlas", "unwrap", "xatlas_charts"]

# Texels between charts: bilinear lookups and two mip levels stay inside the dilated border.
PADDING = 4
# A triangle's patch needs its two borders and at least two texels of colour.
MIN_PATCH = 6


@dataclass(frozen=True)
class Atlas:
    """A map of the surface onto the unit square."""

    uv: Float[np.ndarray, "t 2"]
    """Texture coordinates, (0, 0) at the top left of the image."""
    t_tex_idx: Int[np.ndarray, "f 3"]
    """Texture vertex of each corner of each face."""
    kind: Literal["charts", "patches"]
    """``charts`` from xatlas, ``patches`` for one patch per triangle."""


def unwrap(mesh: Triangles, *, texture_size: int, budget_s: float) -> Atlas | None:
    """Unwrap with xatlas, or with patches when that fails or exceeds ``budget_s``.

    Returns:
        None when even patches do not fit: there are too many triangles for the texture.
    """
    atlas = xatlas_charts(mesh, texture_size=texture_size, budget_s=budget_s)
    return atlas or patch_atlas(len(mesh.t_pos_idx), texture_size=texture_size)


def xatlas_charts(mesh: Triangles, *, texture_size: int, budget_s: float) -> Atlas | None:
    """Unwrap in a separate process; None when it fails or takes longer than ``budget_s``."""
    if budget_s <= 0.0:
        return None
    with tempfile.TemporaryDirectory(prefix="studio-unwrap-") as folder:
        source, target = Path(folder, "mesh.npz"), Path(folder, "atlas.npz")
        np.savez(source, v_pos=mesh.v_pos, t_pos_idx=mesh.t_pos_idx)
        command = [sys.executable, str(Path(__file__).with_name("xatlas_process.py"))]
        command += [str(source), str(target), str(texture_size), str(PADDING)]
        try:
            subprocess.run(command, timeout=budget_s, check=True, capture_output=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            return None
        with np.load(target) as data:
            return Atlas(
                data["uv"].astype(np.float64), data["t_tex_idx"].astype(np.int64), "charts"
            )


def patch_atlas(n_faces: int, *, texture_size: int) -> Atlas | None:
    """Give every triangle half of a square cell; None when the cells would be too small.

    Wasteful and full of seams, but instant and exact for any mesh.
    """
    columns = int(np.ceil(np.sqrt(np.ceil(n_faces / 2))))
    cell = texture_size // max(columns, 1)
    if cell < MIN_PATCH:
        return None
    face = np.arange(n_faces)
    origin = np.stack([(face // 2) % columns, (face // 2) // columns], axis=-1) * cell  # [f, 2]
    # Corners keep one texel from the cell's border, and the two halves two texels from each other.
    low, high = 1.0, cell - 1.0
    first = np.array([[low, low], [high - 2.0, low], [low, high - 2.0]])
    second = np.array([[high, high], [low + 2.0, high], [high, low + 2.0]])
    local = np.where((face % 2 == 0)[:, None, None], first, second)
    uv = (origin[:, None, :] + local) / texture_size
    return Atlas(uv.reshape(-1, 2), np.arange(3 * n_faces).reshape(-1, 3), "patches")
