"""Binary PLY with normals and display-referred 8-bit vertex colours."""

from __future__ import annotations

import numpy as np

from studio.export.shading import FlatMesh

__all__ = ["ply_bytes"]

_VERTEX = [("position", "<f4", 3), ("normal", "<f4", 3), ("rgb", "u1", 3)]
_PROPERTIES = {
    "position": ("float", "x y z"),
    "normal": ("float", "nx ny nz"),
    "rgb": ("uchar", "red green blue"),
}


def ply_bytes(mesh: FlatMesh) -> bytes:
    """Serialise a mesh that has vertex colours (white where it has none)."""
    vertices = np.empty(len(mesh.position), dtype=_VERTEX)
    vertices["position"], vertices["normal"] = mesh.position, mesh.normal
    rgb = np.ones_like(mesh.position) if mesh.rgb is None else mesh.rgb
    vertices["rgb"] = np.round(np.clip(rgb, 0.0, 1.0) * 255.0)
    faces = np.empty(len(mesh.faces), dtype=[("n", "u1"), ("index", "<i4", 3)])
    faces["n"], faces["index"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    for name, _, _ in _VERTEX:
        kind, labels = _PROPERTIES[name]
        header += [f"property {kind} {label}" for label in labels.split()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    return ("\n".join(header) + "\n").encode() + vertices.tobytes() + faces.tobytes()
