"""From a model of the furniture libraries to an object of the pack.

The libraries are y-up with the front towards +z; the catalogue adds a rotation and the true size
in each direction, to which Sweet Home 3D stretches the model, and so do we.

    mesh = convert(entry, library, yaw_deg=0.0)
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import replace

import numpy as np
from PIL import Image

from scenes.objects.catalog import Entry
from scenes.objects.errors import BrokenSource
from scenes.objects.mesh import ObjectMesh
from scenes.objects.obj_reader import SourceMesh, read_obj
from scenes.objects.simplify import compacted, simplified, thinned
from scenes.objects.winding import outward
from scenes.toybox.objects import OBJECT_RADIUS

__all__ = ["MAX_FACES", "convert", "normalised", "placed"]

MAX_FACES = 4000
_PLANT = re.compile(r"tree|plant|flower|bush|hedge|tulip|lily|orchid|bamboo|yucca", re.IGNORECASE)
IMAGE_SIDE = 128
INVISIBLE = 0.02
"""Materials below this opacity are helpers of the modelling program."""
MIN_OPACITY = 0.3
"""Glass is drawn at least this solid, so that it can be seen on white."""


def placed(mesh: SourceMesh, entry: Entry, yaw_deg: float) -> SourceMesh:
    """The model at its true proportions in our axes, with its farthest vertex at the radius.

    Args:
        mesh: y-up, front towards +z.
        entry: its rotation and size.
        yaw_deg: turns the model around the vertical, counter-clockwise from above.
    """
    v_pos = mesh.v_pos @ entry.rotation.T
    low, high = v_pos.min(0), v_pos.max(0)
    extent = np.where(high - low > 1e-9, high - low, 1.0)
    width, depth, height = entry.size_cm
    v_pos = (v_pos - (low + high) / 2) * (np.array([width, height, depth]) / extent)
    v_pos = v_pos[:, [2, 0, 1]]  # front +z -> +x, right +x -> +y, up +y -> +z
    c, s = np.cos(np.deg2rad(yaw_deg)), np.sin(np.deg2rad(yaw_deg))
    v_pos = v_pos @ np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]).T
    return normalised(replace(mesh, v_pos=v_pos))


def normalised(mesh: SourceMesh) -> SourceMesh:
    """The mesh around the origin, with its farthest vertex at the radius."""
    v_pos = mesh.v_pos - (mesh.v_pos.min(0) + mesh.v_pos.max(0)) / 2
    return replace(mesh, v_pos=v_pos * (OBJECT_RADIUS / np.linalg.norm(v_pos, axis=1).max()))


def convert(entry: Entry, library: zipfile.ZipFile, *, yaw_deg: float = 0.0) -> ObjectMesh:
    """Read, place, simplify and orient one model.

    Raises:
        BrokenSource: the model or one of its images cannot be read.
    """
    source = read_obj(library, entry.model)
    # The catalogue's size is that of all faces, invisible ones included, but not of stray vertices.
    source = placed(compacted(source, np.arange(len(source.t_pos_idx))), entry, yaw_deg)
    opacity = np.array([m.opacity for m in source.materials])
    visible = np.nonzero(opacity[source.face_material] > INVISIBLE)[0]
    if len(visible):
        source = compacted(source, visible)
    reduce = thinned if any(_PLANT.search(t) for t in (*entry.tags, entry.name)) else simplified
    mesh = normalised(reduce(normalised(source), faces=MAX_FACES))
    tri = outward(mesh.v_pos, mesh.t_pos_idx)
    turned = (tri != mesh.t_pos_idx).any(1)
    t_tex_idx = np.where(turned[:, None], mesh.t_tex_idx[:, ::-1], mesh.t_tex_idx)
    mesh = replace(mesh, t_pos_idx=tri, t_tex_idx=t_tex_idx)
    return _with_images(mesh, library, entry.key)


def _with_images(mesh: SourceMesh, library: zipfile.ZipFile, name: str) -> ObjectMesh:
    paths = sorted({m.texture for m in mesh.materials if m.texture is not None})
    images = tuple(_read_image(library, path) for path in paths)
    image = np.array([paths.index(m.texture) if m.texture else -1 for m in mesh.materials])
    rgb = np.array([m.rgb for m in mesh.materials], np.float32)
    opacity = np.clip([m.opacity for m in mesh.materials], MIN_OPACITY, 1.0).astype(np.float32)
    parts = [m.name for m in mesh.materials]
    face_material = mesh.face_material.copy()
    # Faces of a textured material without coordinates show the image's mean colour.
    bare = (image[face_material] >= 0) & (mesh.t_tex_idx < 0).any(1)
    for k in np.unique(face_material[bare]):
        texels = images[image[k]].reshape(-1, 4).astype(np.float32) / 255
        mean = np.average(texels[:, :3], 0, texels[:, 3] + 1e-6)
        face_material[bare & (face_material == k)] = len(rgb)
        rgb = np.concatenate([rgb, mean[None]])
        opacity, image = np.append(opacity, opacity[k]), np.append(image, -1)
        parts.append(parts[k])
    used, face_material = np.unique(face_material, return_inverse=True)
    kept = sorted({int(image[k]) for k in used if image[k] >= 0})
    v_tex = mesh.v_tex * (1.0, -1.0) + (0.0, 1.0)  # row 0 of an image is its top
    return ObjectMesh(
        name=name,
        v_pos=mesh.v_pos.astype(np.float32),
        t_pos_idx=mesh.t_pos_idx,
        v_tex=v_tex.astype(np.float32),
        t_tex_idx=np.maximum(mesh.t_tex_idx, 0),
        face_material=face_material,
        rgb=rgb[used].astype(np.float32),
        opacity=opacity[used],
        image=np.array([kept.index(image[k]) if image[k] >= 0 else -1 for k in used]),
        images=tuple(images[k] for k in kept),
        parts=tuple(parts[k] for k in used),
    )


def _read_image(library: zipfile.ZipFile, path: str) -> np.ndarray:
    try:
        picture = Image.open(io.BytesIO(library.read(path))).convert("RGBA")
    except OSError as error:
        raise BrokenSource(f"The image {path} cannot be read: {error}.") from error
    longest = max(picture.size)
    if longest > IMAGE_SIDE:
        size = tuple(max(1, round(side * IMAGE_SIDE / longest)) for side in picture.size)
        # Reduce colours times coverage, or the hidden colours of holes would bleed in.
        picture = picture.convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
    return np.asarray(picture)
