"""Binary glTF 2.0 files: one mesh, one physically based material.

Written to pass the Khronos validator without errors, warnings or hints: buffer view targets, exact
bounds of POSITION, unit normals, 4-byte aligned views, one buffer. Texture images keep their sRGB
bytes, as glTF wants; COLOR_0 is *linear* by definition, so vertex colours are converted, to 16
bits, because 8 linear bits would band in the dark.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from studio.export.shading import FlatMesh

__all__ = ["glb_bytes", "linear_to_srgb", "png_bytes", "srgb_to_linear"]

GENERATOR = "text-to-3d-studio"
GLB_VERSION = 2
_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_FLOAT, _USHORT, _UINT = 5126, 5123, 5125
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071
ROUGHNESS = 0.9


def srgb_to_linear(srgb: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The sRGB transfer function (IEC 61966-2-1): display-referred 0..1 to linear 0..1."""
    srgb = np.clip(np.asarray(srgb, dtype=np.float64), 0.0, 1.0)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Inverse of ``srgb_to_linear``."""
    linear = np.clip(np.asarray(linear, dtype=np.float64), 0.0, 1.0)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def png_bytes(image: Float[np.ndarray, "h w 3"]) -> bytes:
    """Encode a display-referred image in 0..1 as PNG, rounding to the nearest byte."""
    from PIL import Image

    data = np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(data).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def glb_bytes(
    mesh: FlatMesh, *, texture_png: bytes | None, name: str, extras: dict[str, Any] | None = None
) -> bytes:
    """Serialise an asset.

    Args:
        mesh: in glTF axes; with ``uv`` when there is a texture, with ``rgb`` when there is not.
        texture_png: the base colour image, sRGB PNG.
        name: shown in the outliner of 3D tools.
        extras: stored under ``asset.extras`` (prompt, seed, version); JSON values only.
    """
    buffer = _Buffer()
    attributes = _attributes(mesh, buffer)
    primitive = {"attributes": attributes, "indices": _indices(mesh, buffer), "material": 0}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": GENERATOR, "extras": extras or {}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": name}],
        "meshes": [{"primitives": [primitive], "name": name}],
        "materials": [_material(textured=texture_png is not None, closed=mesh.closed)],
    }
    if texture_png is not None:
        view = buffer.add(texture_png)
        document["images"] = [{"bufferView": view, "mimeType": "image/png", "name": "baseColor"}]
        document["samplers"] = [
            {
                "magFilter": _LINEAR,
                "minFilter": _LINEAR_MIPMAP_LINEAR,
                "wrapS": _CLAMP,
                "wrapT": _CLAMP,
            }
        ]
        document["textures"] = [{"sampler": 0, "source": 0}]
    document["accessors"] = buffer.accessors
    document["bufferViews"] = buffer.views
    document["buffers"] = [{"byteLength": len(buffer.data)}]
    return _container(document, bytes(buffer.data))


def _material(*, textured: bool, closed: bool) -> dict[str, Any]:
    """Rough and not metallic; vertex colours multiply the white base by themselves.

    Both sides are drawn where the surface is open, as our own renderer does: a viewer that leaves
    back faces out would show nothing of a sheet from behind.
    """
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    if textured:
        surface["baseColorTexture"] = {"index": 0}
    return {"name": "surface", "pbrMetallicRoughness": surface, "doubleSided": not closed}


@dataclass
class _Buffer:
    """The binary chunk while it grows, with its views and accessors."""

    data: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, data: bytes, *, target: int | None = None) -> int:
        """Append a 4-byte aligned buffer view and return its index."""
        view: dict[str, Any] = {
            "buffer": 0,
            "byteOffset": len(self.data),
            "byteLength": len(data),
        }
        if target is not None:
            view["target"] = target
        self.data += data + b"\0" * (-len(data) % 4)
        self.views.append(view)
        return len(self.views) - 1

    def add_accessor(self, array: np.ndarray, kind: str, component: int, **more: Any) -> int:
        """Append an array with its accessor and return the accessor's index."""
        target = _ELEMENT_BUFFER if kind == "SCALAR" else _ARRAY_BUFFER
        view = self.add(np.ascontiguousarray(array).tobytes(), target=target)
        accessor = {"bufferView": view, "componentType": component, "count": len(array)}
        self.accessors.append({**accessor, "type": kind, **more})
        return len(self.accessors) - 1


def _attributes(mesh: FlatMesh, buffer: _Buffer) -> dict[str, int]:
    """Write the vertex attributes; bounds are those of the stored float32 values."""
    position = mesh.position.astype("<f4")
    bounds = {"min": position.min(axis=0).tolist(), "max": position.max(axis=0).tolist()}
    attributes = {
        "POSITION": buffer.add_accessor(position, "VEC3", _FLOAT, **bounds),
        "NORMAL": buffer.add_accessor(mesh.normal.astype("<f4"), "VEC3", _FLOAT),
    }
    if mesh.uv is not None:
        attributes["TEXCOORD_0"] = buffer.add_accessor(mesh.uv.astype("<f4"), "VEC2", _FLOAT)
    if mesh.rgb is not None:
        rgba = np.concatenate([srgb_to_linear(mesh.rgb), np.ones((len(mesh.rgb), 1))], axis=1)
        color = np.round(rgba * 65535.0).astype("<u2")
        attributes["COLOR_0"] = buffer.add_accessor(color, "VEC4", _USHORT, normalized=True)
    return attributes


def _indices(mesh: FlatMesh, buffer: _Buffer) -> int:
    """Write the triangle list with 16 bits an index where they suffice."""
    # The largest value of each type is reserved for primitive restart.
    small = len(mesh.position) < 65535
    flat = mesh.faces.reshape(-1).astype("<u2" if small else "<u4")
    return buffer.add_accessor(flat, "SCALAR", _USHORT if small else _UINT)


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    """Pack the JSON and binary chunks; JSON is padded by spaces, binary data by zeros."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), _JSON) + text
    chunks += struct.pack("<II", len(binary), _BIN) + binary
    return struct.pack("<III", _MAGIC, GLB_VERSION, 12 + len(chunks)) + chunks
