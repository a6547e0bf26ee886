"""Cut-out and see-through surfaces, added to a picture of the solid ones.

Leaves, hair and lattices are images with holes; glass has an opacity. Both are drawn by screen-door
transparency (Mulder, Groen and van Wijk, "Pixel masks for screen-door transparency", 1998): a
sample is kept where the surface's opacity exceeds a threshold of a repeating pattern, so that no
order of drawing is needed and a box filter over the pattern gives the right coverage.

    add_sheer(raster, pos_clip, sheer, thresholds=BAYER)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from renderers.backends.numba_runtime import KERNEL_LOCK

__all__ = ["BAYER", "PRESENT", "SheerFaces", "add_sheer"]

BAYER = (
    np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) + 0.5
) / 16
"""Ordered thresholds of 4 x 4 samples."""
PRESENT = np.full((1, 1), 0.25, np.float32)
"""One threshold, for buffers with one sample a pixel: glass counts as a surface."""
MIN_W = 1e-6


@dataclass(frozen=True)
class SheerFaces:
    """The faces that are not solid everywhere.

    Attributes:
        face: ``[S]`` their index in the mesh; tri: ``[S, 3]`` vertices; uv: ``[S, 3, 2]``.
        opacity: ``[S]`` of the material.
        start, width, height: ``[S]`` where the image of each lies in ``alpha``; width 0 = none.
        alpha: ``[n]`` uint8, all images row by row.
    """

    face: np.ndarray
    tri: np.ndarray
    uv: np.ndarray
    opacity: np.ndarray
    start: np.ndarray
    width: np.ndarray
    height: np.ndarray
    alpha: np.ndarray


def add_sheer(
    tri_id: np.ndarray,
    zw: np.ndarray,
    bary: np.ndarray,
    *,
    pos_clip: np.ndarray,
    sheer: SheerFaces,
    thresholds: np.ndarray,
) -> None:
    """Draw the faces into the buffers of ``rasterize`` for ``b`` views, in place.

    Args:
        tri_id: ``[b, H, W]``; zw: ``[b, H, W]``; bary: ``[b, H, W, 2]``.
        pos_clip: ``[b, V, 4]`` float32.
        sheer: the faces.
        thresholds: ``[p, q]``, repeated over the image.
    """
    with KERNEL_LOCK:
        for k in range(len(tri_id)):
            _draw(
                tri_id[k], zw[k], bary[k], pos_clip[k], thresholds, sheer.face, sheer.tri,
                sheer.uv, sheer.opacity, sheer.start, sheer.width, sheer.height, sheer.alpha,
            )  # fmt: skip


@njit(cache=True, error_model="numpy")
def _draw(tri_id, zw, bary, pos, thresholds, face, tri, uv, opacity, start, width, height, alpha):
    rows, columns = tri_id.shape
    for s in range(len(face)):
        a, b, c = pos[tri[s, 0]], pos[tri[s, 1]], pos[tri[s, 2]]
        if a[3] <= MIN_W or b[3] <= MIN_W or c[3] <= MIN_W:
            continue
        ax, ay = (a[0] / a[3] * 0.5 + 0.5) * columns, (a[1] / a[3] * 0.5 + 0.5) * rows
        bx, by = (b[0] / b[3] * 0.5 + 0.5) * columns, (b[1] / b[3] * 0.5 + 0.5) * rows
        cx, cy = (c[0] / c[3] * 0.5 + 0.5) * columns, (c[1] / c[3] * 0.5 + 0.5) * rows
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        top = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        bottom = min(rows - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        left = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        right = min(columns - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                e0 = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                e1 = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                e2 = 1.0 - e0 - e1
                if e0 < 0.0 or e1 < 0.0 or e2 < 0.0:
                    continue
                z = e0 * a[2] / a[3] + e1 * b[2] / b[3] + e2 * c[2] / c[3]
                if z >= zw[y, x] or z < -1.0:
                    continue
                p0, p1, p2 = e0 / a[3], e1 / b[3], e2 / c[3]
                total = p0 + p1 + p2
                p0, p1, p2 = p0 / total, p1 / total, p2 / total
                solid = opacity[s]
                if width[s] > 0:
                    u = p0 * uv[s, 0, 0] + p1 * uv[s, 1, 0] + p2 * uv[s, 2, 0]
                    v = p0 * uv[s, 0, 1] + p1 * uv[s, 1, 1] + p2 * uv[s, 2, 1]
                    i = min(int((u - np.floor(u)) * width[s]), width[s] - 1)
                    j = min(int((v - np.floor(v)) * height[s]), height[s] - 1)
                    solid *= alpha[start[s] + j * width[s] + i] / 255.0
                if solid > thresholds[y % thresholds.shape[0], x % thresholds.shape[1]]:
                    zw[y, x] = z
                    tri_id[y, x] = face[s] + 1
                    bary[y, x, 0] = p0
                    bary[y, x, 1] = p1
