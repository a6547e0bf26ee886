"""The bytes of one object: small whole numbers that compress well, in a safetensors block.

Positions and texture coordinates are 14-bit steps of their range, stored as differences to the
vertex before. Faces are grouped by material, those with an image first, and their vertices are
numbered in order of first use; an index is stored as its distance from the next new number, so that
most are zero or small. Images are WebP.

    data = encode(mesh)
    mesh = decode("dog", data)
"""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from scenes.objects.errors import BrokenSource
from scenes.objects.mesh import ObjectMesh

__all__ = ["decode", "encode"]

STEPS = 2**14 - 1
WEBP_QUALITY = 82
NO_IMAGE = 255


def encode(mesh: ObjectMesh) -> bytes:
    """The object as bytes; equal objects give equal bytes."""
    mesh = _sorted(mesh)
    textured = (mesh.image[mesh.face_material] >= 0).sum()
    tri, order = _first_use(mesh.t_pos_idx)
    tex, tex_order = _first_use(mesh.t_tex_idx[:textured])
    positions, position_range = _steps(mesh.v_pos[order])
    coords, coord_range = _steps(mesh.v_tex[tex_order])
    tensors = {
        "faces": _distances(tri),
        "positions": positions,
        "position_range": position_range,
        "tex_faces": _distances(tex),
        "tex_coords": coords,
        "tex_range": coord_range,
        "material_faces": np.bincount(mesh.face_material, minlength=len(mesh.rgb)).astype(
            np.uint16
        ),
        "rgb": np.round(mesh.rgb * 255).astype(np.uint8),
        "opacity": np.round(mesh.opacity * 255).astype(np.uint8),
        "image": np.where(mesh.image < 0, NO_IMAGE, mesh.image).astype(np.uint8),
        "parts": np.frombuffer(json.dumps(mesh.parts).encode(), np.uint8),
    }
    for k, image in enumerate(mesh.images):
        tensors[f"image_{k}"] = np.frombuffer(_webp(image), np.uint8)
    return save(tensors)


def decode(name: str, data: bytes) -> ObjectMesh:
    """The object that ``encode`` was given, to within its rounding.

    Raises:
        BrokenSource: the bytes are no object of the pack.
    """
    try:
        tensors = load(data)
        images = [tensors[f"image_{k}"] for k in range(sum(n[:6] == "image_" for n in tensors))]
        face_material = np.repeat(np.arange(len(tensors["rgb"])), tensors["material_faces"])
        tri, tex = _indices(tensors["faces"]), _indices(tensors["tex_faces"])
        return ObjectMesh(
            name=name,
            v_pos=_values(tensors["positions"], tensors["position_range"]),
            t_pos_idx=tri,
            v_tex=_values(tensors["tex_coords"], tensors["tex_range"]),
            t_tex_idx=np.concatenate([tex, np.zeros((len(tri) - len(tex), 3), np.int64)]),
            face_material=face_material,
            rgb=tensors["rgb"].astype(np.float32) / 255,
            opacity=tensors["opacity"].astype(np.float32) / 255,
            image=np.where(tensors["image"] == NO_IMAGE, -1, tensors["image"].astype(np.int64)),
            images=tuple(
                np.asarray(Image.open(io.BytesIO(image.tobytes())).convert("RGBA"))
                for image in images
            ),
            parts=tuple(json.loads(tensors["parts"].tobytes())),
        )
    except Exception as error:
        raise BrokenSource(
            f"The pack's entry for {name!r} cannot be read ({error}). Restore the pack from a "
            "fresh copy of the project, or build it again: python -m scenes.objects.build."
        ) from error


def _sorted(mesh: ObjectMesh) -> ObjectMesh:
    """Materials with an image first, and faces in the order of their materials."""
    order = np.argsort(mesh.image < 0, kind="stable")
    rank = np.argsort(order, kind="stable")
    face_material = rank[mesh.face_material]
    faces = np.argsort(face_material, kind="stable")
    return replace(
        mesh,
        t_pos_idx=mesh.t_pos_idx[faces],
        t_tex_idx=mesh.t_tex_idx[faces],
        face_material=face_material[faces],
        rgb=mesh.rgb[order],
        opacity=mesh.opacity[order],
        image=mesh.image[order],
        parts=tuple(mesh.parts[k] for k in order),
    )


def _first_use(tri: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Faces with vertices numbered by first use, and the old number of each."""
    old, first, inverse = np.unique(tri, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(old), np.int64)
    rank[order] = np.arange(len(old))
    return rank[inverse].reshape(-1, 3), old[order]


def _distances(tri: np.ndarray) -> np.ndarray:
    """Distance of each index from the next new one; 0 is a new vertex."""
    flat = tri.reshape(-1)
    seen = np.maximum.accumulate(np.r_[-1, flat])[:-1] + 1
    return (seen - flat).astype(np.uint16)


def _indices(distances: np.ndarray) -> np.ndarray:
    new = distances == 0
    return (np.cumsum(new) - new - distances).reshape(-1, 3).astype(np.int64)


def _steps(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Differences of whole steps ``[C, n]`` and the range ``[2, C]`` they span."""
    if len(values) == 0:
        return np.zeros((values.shape[1], 0), np.uint16), np.zeros((2, values.shape[1]), np.float32)
    low, high = values.min(0), values.max(0)
    scale = np.where(high > low, high - low, 1.0)
    steps = np.round((values - low) / scale * STEPS).astype(np.uint16)
    zero = np.zeros((1, values.shape[1]), np.uint16)
    return np.diff(steps, axis=0, prepend=zero).T.copy(), np.stack([low, low + scale]).astype("f4")


def _values(differences: np.ndarray, span: np.ndarray) -> np.ndarray:
    steps = np.cumsum(differences, axis=1, dtype=np.uint16).T
    return (span[0] + steps.astype(np.float32) / STEPS * (span[1] - span[0])).astype(np.float32)


def _webp(image: np.ndarray) -> bytes:
    mode = "RGBA" if (image[..., 3] < 255).any() else "RGB"
    data = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image)).convert(mode)
    picture.save(data, "WEBP", quality=WEBP_QUALITY, method=6, exact=False)
    return data.getvalue()
