"""Decimation by quadric edge collapse (Garland and Heckbert 1997, fast-simplification)."""

from __future__ import annotations

import numpy as np

from studio.export.triangles import Triangles

__all__ = ["decimate"]


def decimate(mesh: Triangles, max_faces: int) -> Triangles:
    """Reduce the mesh to at most about ``max_faces`` triangles; a smaller one is returned as is.

    Collapsed edges can leave slivers: ``cleanup.repair`` belongs after this.
    """
    import fast_simplification

    if len(mesh.t_pos_idx) <= max_faces:
        return mesh
    # Centred and scaled, because the library computes in float32.
    lower, upper = mesh.bounds()
    centre, scale = 0.5 * (lower + upper), max(float((upper - lower).max()), 1e-12)
    points, faces = fast_simplification.simplify(
        ((mesh.v_pos - centre) / scale).astype(np.float32),
        mesh.t_pos_idx.astype(np.int32),
        target_count=max_faces,
    )
    return Triangles.of(points.astype(np.float64) * scale + centre, faces)
