"""The unwrapping process: ``python xatlas_process.py mesh.npz atlas.npz SIZE PADDING``.

Imports nothing of the project, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import sys

import numpy as np

__all__ = ["main"]


def main(source: str, target: str, texture_size: int, padding: int) -> None:
    """Read ``v_pos`` and ``t_pos_idx``, write ``uv [t, 2]`` and ``t_tex_idx [f, 3]``."""
    import xatlas

    with np.load(source) as data:
        v_pos, faces = data["v_pos"], data["t_pos_idx"]
    span = max(float(np.ptp(v_pos, axis=0).max()), 1e-12)
    v_pos = ((v_pos - v_pos.mean(axis=0)) / span).astype(np.float32)
    atlas = xatlas.Atlas()
    atlas.add_mesh(v_pos, faces.astype(np.uint32))
    options = xatlas.PackOptions()
    options.resolution = texture_size
    options.padding = padding
    options.bilinear = True
    atlas.generate(pack_options=options)
    if atlas.atlas_count != 1:
        raise SystemExit(f"xatlas made {atlas.atlas_count} pages, expected 1")
    _, t_tex_idx, uv = atlas[0]
    if len(t_tex_idx) != len(faces):
        raise SystemExit(f"xatlas kept {len(t_tex_idx)} of {len(faces)} triangles")
    np.savez(target, uv=uv, t_tex_idx=t_tex_idx)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
