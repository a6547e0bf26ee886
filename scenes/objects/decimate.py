"""Decimation that is checked: of several attempts the one that keeps the outline is taken.

Quadric error decimation (Garland and Heckbert, 1997; the fast-simplification package) stops early
or tears apart models of many thin pieces that merely touch. Such models come out better when near
vertices are welded first, at the price of fine detail. So attempts are made from the most careful
to the coarsest until the silhouettes from four sides agree with those of the source.

    v_pos, tri = decimated(v_pos, tri, faces=4000)
"""

from __future__ import annotations

import numpy as np
import torch

from renderers.cameras import orbit_cameras
from renderers.raster import rasterize, to_clip

__all__ = ["decimated", "overlap", "silhouettes", "weld"]

ATTEMPTS = ((0.0, 5.0), (0.0, 3.0), (0.0025, 5.0), (0.005, 5.0), (0.01, 5.0), (0.02, 5.0))
"""Weld as a share of the diagonal, and how eagerly the decimation collapses (its ``agg``)."""
GOOD_OVERLAP = 0.975
TOLERANCE = 1.05
SIZE = 96


def weld(
    v_pos: np.ndarray, tri: np.ndarray, *, cell: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make one vertex of those in a cell, and drop faces that lose a corner or repeat another.

    Args:
        v_pos: ``[V, 3]``.
        tri: ``[F, 3]``.
        cell: side of the cells.

    Returns:
        Positions, faces, and which of the old faces these are, in order.
    """
    keys = np.round((v_pos - v_pos.min(0)) / cell).astype(np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    tri = inverse.reshape(-1)[tri]
    _, kept = np.unique(np.sort(tri, 1), axis=0, return_index=True)
    kept = np.sort(kept)
    a, b, c = tri[kept].T
    kept = kept[(a != b) & (b != c) & (a != c)]
    return v_pos[first], tri[kept], kept


def silhouettes(v_pos: np.ndarray, tri: np.ndarray) -> np.ndarray:
    """Which pixels the faces cover from four sides, ``[4, h, w]`` bool; inside the unit ball."""
    cameras = orbit_cameras(
        4, elevation_deg=20.0, distance=3.4, fovy_deg=36.0, height=SIZE, width=SIZE,
        azimuth_start_deg=25.0,
    )  # fmt: skip
    positions = torch.from_numpy(np.ascontiguousarray(v_pos)).float()
    faces = torch.from_numpy(np.ascontiguousarray(tri)).long()
    seen = rasterize(to_clip(positions, cameras.mvp()), faces, (SIZE, SIZE))
    return seen.tri_id.numpy() > 0


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def decimated(v_pos: np.ndarray, tri: np.ndarray, *, faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and about ``faces`` faces or fewer of the same shape."""
    low, high = v_pos.min(0), v_pos.max(0)
    centre, diagonal = (low + high) / 2, max(float(np.linalg.norm(high - low)), 1e-12)
    unit = (v_pos - centre) * (1.9 / diagonal)
    truth = silhouettes(unit, tri)
    best, score = (unit, tri), -np.inf
    for cell, eagerness in ATTEMPTS:
        points, less = (unit, tri) if cell == 0 else weld(unit, tri, cell=cell * 1.9)[:2]
        points, less = _collapsed(points, less, faces=faces, eagerness=eagerness)
        found = overlap(truth, silhouettes(points, less))
        # Too many faces are worse than any outline, and more of them worse still.
        rank = found if len(less) <= faces * TOLERANCE else -len(less) / faces
        if len(less) and rank > score:
            best, score = (points, less), rank
        if score >= GOOD_OVERLAP:
            break
    return best[0] * (diagonal / 1.9) + centre, best[1]


def _collapsed(
    v_pos: np.ndarray, tri: np.ndarray, *, faces: int, eagerness: float
) -> tuple[np.ndarray, np.ndarray]:
    import fast_simplification

    if len(tri) <= faces:
        return v_pos, tri
    v_pos, tri = fast_simplification.simplify(
        v_pos.astype(np.float32), tri.astype(np.int32), target_count=faces, agg=eagerness
    )[:2]
    return np.asarray(v_pos, np.float64), np.asarray(tri, np.int64)
