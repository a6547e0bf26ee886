"""Wavefront OBJ with its material library. Colours are display-referred, as OBJ readers expect."""

from __future__ import annotations

import numpy as np

from studio.export.gltf import ROUGHNESS
from studio.export.shading import FlatMesh

__all__ = ["mtl_text", "obj_text"]


def obj_text(mesh: FlatMesh, *, name: str, mtl_name: str | None) -> str:
    """Serialise a mesh; without a texture, colours follow the positions (``v x y z r g b``)."""
    lines = [f"o {name}"]
    if mtl_name is not None:
        lines.append(f"mtllib {mtl_name}")
    vertices = mesh.position if mesh.rgb is None else np.concatenate([mesh.position, mesh.rgb], 1)
    lines += _rows("v", vertices, digits=9)
    lines += _rows("vn", mesh.normal)
    one = mesh.faces + 1
    if mesh.uv is not None:
        # OBJ counts v from the bottom of the image.
        lines += _rows("vt", np.stack([mesh.uv[:, 0], 1.0 - mesh.uv[:, 1]], axis=1))
        lines.append("usemtl surface")
        lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in one.tolist()]
    else:
        lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in one.tolist()]
    return "\n".join(lines) + "\n"


def mtl_text(texture_name: str) -> str:
    """A rough, non-metallic material; ``Pr`` and ``Pm`` are the physically based extension."""
    return (
        "newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\n"
        f"Pr {ROUGHNESS}\nPm 0\nmap_Kd {texture_name}\n"
    )


def _rows(tag: str, values: np.ndarray, *, digits: int = 6) -> list[str]:
    """Format one line per row; nine significant digits keep float32 exactly, at any size."""
    pattern = tag + f" %.{digits}g" * values.shape[1]
    return [pattern % tuple(row) for row in values.tolist()]
