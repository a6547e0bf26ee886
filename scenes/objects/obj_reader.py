"""A reader of Wavefront OBJ and MTL files inside a ZIP, quick enough for hundreds of models.

Numbers are parsed a file at a time. Polygons become triangles: fans where they are convex, from
the reflex corner in concave quadrilaterals, ears otherwise. Lines, curves and smoothing groups are
ignored. Texture coordinates keep OBJ's origin at the bottom left.

    source = read_obj(library, "scopia/dog/dog.obj")
"""

from __future__ import annotations

import posixpath
import zipfile
from dataclasses import dataclass, replace

import numpy as np

from scenes.objects.errors import BrokenSource
from scenes.objects.polygons import triangulate

__all__ = ["Material", "SourceMesh", "read_obj"]


@dataclass(frozen=True)
class Material:
    """What a material file says of a surface, as far as we draw it."""

    name: str
    """Its name in the file."""
    rgb: tuple[float, float, float] = (0.8, 0.8, 0.8)
    """Diffuse colour, display-referred."""
    opacity: float = 1.0
    """1 is solid."""
    texture: str | None = None
    """Path of the colour image inside the library."""


@dataclass(frozen=True)
class SourceMesh:
    """A model as the file has it.

    Attributes:
        v_pos: ``[V, 3]``; v_tex: ``[T, 2]``.
        t_pos_idx: ``[F, 3]``; t_tex_idx: ``[F, 3]``, -1 where a corner has no coordinates.
        face_material: ``[F]`` index into ``materials``.
    """

    v_pos: np.ndarray
    v_tex: np.ndarray
    t_pos_idx: np.ndarray
    t_tex_idx: np.ndarray
    face_material: np.ndarray
    materials: tuple[Material, ...]


def read_obj(library: zipfile.ZipFile, path: str) -> SourceMesh:
    """Read a model with its materials.

    Raises:
        BrokenSource: the library lacks the file, or the file holds no faces or bad indices.
    """
    lines = _Lines(_text(library, path))
    if not lines.faces:
        raise BrokenSource(f"{path} has no faces, expected a model with a surface.")
    corners, counts = _corners(lines.faces, path)
    v_pos = _numbers(lines.positions, 3)
    v_tex = _numbers(lines.tex_coords, 2)
    for column, size in ((0, len(v_pos)), (1, len(v_tex))):
        low, high = corners[:, column].min(), corners[:, column].max()
        if low < -1 or high >= size or (column == 0 and low < 0):
            raise BrokenSource(f"{path} uses index {high + 1} of {size}, expected 1..{size}.")
    triangles, polygon = triangulate(v_pos, corners[:, 0], counts)
    return SourceMesh(
        v_pos=v_pos,
        v_tex=v_tex,
        t_pos_idx=corners[triangles, 0],
        t_tex_idx=corners[triangles, 1],
        face_material=np.array(lines.face_material)[polygon],
        materials=_materials(library, path, lines),
    )


class _Lines:
    """The lines of a file by kind; numbers are still text."""

    def __init__(self, text: bytes) -> None:
        self.positions: list[bytes] = []
        self.tex_coords: list[bytes] = []
        self.faces: list[list[bytes]] = []
        self.face_material: list[int] = []
        self.material_files: list[str] = []
        self.names: dict[str, int] = {}
        current = None
        for line in text.split(b"\n"):
            head = line[:2]
            if head == b"v ":
                self.positions.append(line[2:])
            elif head == b"f ":
                if current is None:
                    current = self.names.setdefault("", 0)
                self.faces.append(line[2:].split())
                self.face_material.append(current)
            elif head == b"vt":
                self.tex_coords.append(line[3:])
            elif line.startswith(b"usemtl"):
                name = line[6:].strip().decode("latin-1")
                current = self.names.setdefault(name, len(self.names))
            elif line.startswith(b"mtllib"):
                self.material_files.append(line[6:].strip().decode("latin-1"))


def _text(library: zipfile.ZipFile, path: str) -> bytes:
    try:
        return library.read(path)
    except KeyError:
        raise BrokenSource(f"The library has no file {path}, which its catalogue names.") from None


def _numbers(lines: list[bytes], width: int) -> np.ndarray:
    """The first ``width`` numbers of each line."""
    if not lines:
        return np.zeros((0, width))
    flat = np.fromstring(b" ".join(lines), sep=" ")
    columns, rest = divmod(len(flat), len(lines))
    if rest or columns < width:
        return np.array([[float(x) for x in line.split()[:width]] for line in lines])
    return flat.reshape(len(lines), columns)[:, :width].copy()


def _corners(faces: list[list[bytes]], path: str) -> tuple[np.ndarray, np.ndarray]:
    """Zero-based position and texture index ``[n, 2]`` of all corners, and corners per face."""
    faces = [face for face in faces if len(face) >= 3] or [[b"0", b"0", b"0"]]
    tokens = [token for face in faces for token in face]
    counts = np.array([len(face) for face in faces])
    slashes = {token.count(b"/") for token in tokens}
    if len(slashes) == 1:
        flat = b" ".join(tokens).replace(b"//", b"/0/").replace(b"/", b" ")
        table = np.fromstring(flat, dtype=np.int64, sep=" ").reshape(len(tokens), -1)
        table = np.pad(table[:, :2], ((0, 0), (0, max(0, 2 - table.shape[1]))))
    else:
        parts = [token.split(b"/") for token in tokens]
        table = np.array([[int(p[0]), int(p[1]) if len(p) > 1 and p[1] else 0] for p in parts])
    if table.min() < 0:
        raise BrokenSource(f"{path} has relative indices, expected absolute ones. Convert it.")
    return table - 1, counts


def _materials(library: zipfile.ZipFile, path: str, lines: _Lines) -> tuple[Material, ...]:
    found: dict[str, Material] = {}
    folder = posixpath.dirname(path)
    for name in lines.material_files:
        try:
            text = library.read(posixpath.normpath(posixpath.join(folder, name)))
        except KeyError:
            continue
        found |= _read_mtl(text.decode("latin-1"), folder, set(library.namelist()))
    return tuple(found.get(name, Material(name)) for name in lines.names)


def _read_mtl(text: str, folder: str, files: set[str]) -> dict[str, Material]:
    found: dict[str, Material] = {}
    current = None
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        value = value.strip()
        if key == "newmtl":
            current = found[value] = Material(value)
        elif current is None or not value:
            continue
        elif key == "Kd":
            rgb = tuple(min(max(float(x), 0.0), 1.0) for x in value.split()[:3])
            current = found[current.name] = replace(current, rgb=rgb)
        elif key == "d":
            current = found[current.name] = replace(current, opacity=float(value.split()[-1]))
        elif key == "map_Kd":
            image = posixpath.normpath(posixpath.join(folder, value))
            if image in files:
                current = found[current.name] = replace(current, texture=image)
    return found
