"""Structural check of GLB files in plain Python.

The Khronos validator is the authority, but it needs Node.js; these are the rules that an exporter
breaks in practice, checked at every export: chunk lengths and alignment, accessor ranges, index
range, degenerate triangles, unit normals, stored bounds, finite numbers, readable images.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np

__all__ = ["check_glb", "read_accessor", "read_glb"]

_COMPONENTS = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_HEADER_BYTES = 12
# The Khronos validator's own tolerance on the length of a normal.
UNIT_TOLERANCE = 0.00674


def read_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a GLB into its JSON document and its binary chunk.

    Raises:
        ValueError: the container is broken; the message says where.
    """
    magic, version, length = struct.unpack_from("<4sII", data)
    if magic != b"glTF" or version != 2:
        raise ValueError(f"magic {magic!r} version {version}, expected b'glTF' version 2")
    if length != len(data):
        raise ValueError(f"header says {length} bytes, the file has {len(data)}")
    chunks: dict[bytes, bytes] = {}
    offset = _HEADER_BYTES
    while offset < length:
        size, kind = struct.unpack_from("<I4s", data, offset)
        if size % 4 or offset + 8 + size > length:
            raise ValueError(f"chunk {kind!r} at byte {offset} has a wrong length {size}")
        chunks[kind] = data[offset + 8 : offset + 8 + size]
        offset += 8 + size
    if list(chunks)[:1] != [b"JSON"]:
        raise ValueError(f"chunks are {list(chunks)}, expected JSON first")
    return json.loads(chunks[b"JSON"]), chunks.get(b"BIN\0", b"")


def read_accessor(document: dict[str, Any], binary: bytes, index: int) -> np.ndarray:
    """Decode one accessor to ``[count, width]`` of its stored number type.

    Raises:
        ValueError: the accessor reaches beyond its buffer view.
    """
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    dtype, width = np.dtype(_COMPONENTS[accessor["componentType"]]), _WIDTHS[accessor["type"]]
    start = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    needed = accessor["count"] * width * dtype.itemsize
    if accessor.get("byteOffset", 0) + needed > view["byteLength"] or start % dtype.itemsize:
        raise ValueError(f"accessor {index} does not fit its buffer view, or is misaligned")
    flat = np.frombuffer(binary, dtype, count=accessor["count"] * width, offset=start)
    return flat.reshape(-1, width)


def check_glb(data: bytes) -> list[str]:
    """Return every problem found, in words; an empty list means the file is sound."""
    try:
        document, binary = read_glb(data)
    except (ValueError, struct.error) as error:
        return [f"container: {error}"]
    problems = _check_views(document, binary)
    if problems:
        return problems
    for mesh in document.get("meshes", []):
        for primitive in mesh["primitives"]:
            try:
                problems += _check_primitive(document, binary, primitive)
            except ValueError as error:
                problems.append(str(error))
    return problems + _check_images(document, binary)


def _check_views(document: dict[str, Any], binary: bytes) -> list[str]:
    """The buffer holds all its views, each aligned to four bytes."""
    problems = []
    length = document["buffers"][0]["byteLength"]
    if not length <= len(binary) < length + 4:
        problems.append(f"buffer says {length} bytes, the chunk has {len(binary)}")
    for index, view in enumerate(document["bufferViews"]):
        offset = view.get("byteOffset", 0)
        if offset % 4 or offset + view["byteLength"] > length:
            problems.append(f"bufferView {index} is misaligned or ends past the buffer")
    return problems


def _check_primitive(
    document: dict[str, Any], binary: bytes, primitive: dict[str, Any]
) -> list[str]:
    """Attributes of equal length, finite, in range; sound triangles."""
    problems = []
    attributes = {
        name: read_accessor(document, binary, index)
        for name, index in primitive["attributes"].items()
    }
    counts = {name: len(values) for name, values in attributes.items()}
    if len(set(counts.values())) != 1:
        problems.append(f"attributes differ in length: {counts}")
    for name, values in attributes.items():
        if not np.isfinite(values.astype(np.float64)).all():
            problems.append(f"{name} holds NaN or infinity")
    problems += _check_bounds(document, primitive, attributes["POSITION"])
    if "NORMAL" in attributes:
        length = np.linalg.norm(attributes["NORMAL"].astype(np.float64), axis=1)
        wrong = int((np.abs(length - 1.0) > UNIT_TOLERANCE).sum())
        if wrong:
            problems.append(f"{wrong} normals are not of unit length")
    faces = read_accessor(document, binary, primitive["indices"]).reshape(-1, 3).astype(np.int64)
    if faces.max(initial=0) >= counts["POSITION"]:
        return [
            *problems,
            f"an index is {faces.max()}, but there are {counts['POSITION']} vertices",
        ]
    corners = attributes["POSITION"].astype(np.float64)[faces]
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    degenerate = int((area <= 0.0).sum())
    if degenerate:
        problems.append(f"{degenerate} triangles have no area")
    return problems


def _check_bounds(
    document: dict[str, Any], primitive: dict[str, Any], position: np.ndarray
) -> list[str]:
    """The bounds stored for POSITION are exactly those of the data."""
    accessor = document["accessors"][primitive["attributes"]["POSITION"]]
    stored = np.array([accessor.get("min", [np.nan] * 3), accessor.get("max", [np.nan] * 3)])
    actual = np.stack([position.min(axis=0), position.max(axis=0)])
    if not np.array_equal(stored.astype(np.float32), actual):
        return [f"POSITION bounds are {stored.tolist()}, the data has {actual.tolist()}"]
    return []


def _check_images(document: dict[str, Any], binary: bytes) -> list[str]:
    """Embedded images decode and are what they are called."""
    from PIL import Image

    problems = []
    for index, image in enumerate(document.get("images", [])):
        view = document["bufferViews"][image["bufferView"]]
        start = view.get("byteOffset", 0)
        try:
            with Image.open(io.BytesIO(binary[start : start + view["byteLength"]])) as decoded:
                decoded.load()
                found = f"image/{(decoded.format or '').lower()}"
        except OSError as error:
            problems.append(f"image {index} does not decode: {error}")
            continue
        if found != image["mimeType"]:
            problems.append(f"image {index} is {found}, declared {image['mimeType']}")
    return problems
