"""Models, libraries and Debian packages made in memory, in the layout of the real ones."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from scenes.objects.obj_reader import Material, SourceMesh

CUBE_OBJ = """mtllib cube.mtl
v -1 -1 -1
v 1 -1 -1
v 1 1 -1
v -1 1 -1
v -1 -1 1
v 1 -1 1
v 1 1 1
v -1 1 1
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl face
f 5/1 6/2 7/3 8/4
usemtl rest
f 2/1 1/2 4/3 3/4
f 1/1 2/2 6/3 5/4
f 4/1 8/2 7/3 3/4
f 1/1 5/2 8/3 4/4
f 2/1 3/2 7/3 6/4
"""
CUBE_MTL = """newmtl face
Kd 0.1 0.2 0.9
map_Kd face.png
newmtl rest
Kd 0.9 0.1 0.1
d 1.0
"""
CATALOG = """# a comment
id=Test#Models
license=Creative Commons Attribution 3.0 license
id#1=Test#cube
name#1=Cube \\u00e9
tags#1=Blend Swap, Toy, Decoration
category#1=Bedroom
icon#1=/test/cube.png
model#1=/test/cube/cube.obj
width#1=20
depth#1=10
height#1=40.0
creator#1=Somebody
id#2=Test#plug
name#2=Wall plug
tags#2=
category#2=Miscellaneous
icon#2=/test/plug.png
model#2=/test/cube/cube.obj
width#2=10
depth#2=10
height#2=10
modelRotation#2=0 0 1 0 1 0 -1 0 0
creator#2=Somebody
id#3=Test#ball
name#3=Ball
tags#3=Toy
category#3=Bedroom
icon#3=/test/ball.png
model#3=/test/ball/ball.obj
width#3=10
depth#3=10
height#3=10
creator#3=Another
"""
LIBRARY_LICENCE = """LICENSE
These files are under the Creative Commons Attribution 3.0 United States license available at:
http://creativecommons.org/licenses/by/3.0/us/"""
CC0_STATEMENT = 'Thank you for downloading "A Ball" by x. Released under Creative Commons Zero (PD)'


def png(color: tuple[int, ...], size: int = 4) -> bytes:
    """A plain PNG image."""
    data = io.BytesIO()
    Image.new("RGBA" if len(color) == 4 else "RGB", (size, size), color).save(data, "PNG")
    return data.getvalue()


def library(files: Mapping[str, bytes | str]) -> zipfile.ZipFile:
    """A ZIP in memory."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return zipfile.ZipFile(data)


def sample_library() -> zipfile.ZipFile:
    """A library of a cube, a plug and a ball with a licence of its own."""
    return library(
        {
            "PluginFurnitureCatalog.properties": CATALOG,
            "LICENSE.TXT": LIBRARY_LICENCE,
            "test/cube/cube.obj": CUBE_OBJ,
            "test/cube/cube.mtl": CUBE_MTL,
            "test/cube/face.png": png((10, 200, 30)),
            "test/ball/ball.obj": CUBE_OBJ.replace("cube.mtl", "ball.mtl"),
            "test/ball/ball.mtl": "newmtl face\nKd 0 1 0\nnewmtl rest\nKd 0 1 0\n",
            "test/ball/BLENDSWAP_LICENSE.txt": CC0_STATEMENT,
        }
    )


def ar_archive(members: Mapping[str, bytes]) -> bytes:
    """An ``ar`` archive."""
    data = b"!<arch>\n"
    for name, content in members.items():
        data += f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        data += content + b"\n" * (len(content) % 2)
    return data


def deb_file(path: Path, libraries: Mapping[str, zipfile.ZipFile]) -> Path:
    """A Debian package that installs libraries."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as tar:
        for name, archive in libraries.items():
            content = archive.fp.getvalue()
            member = tarfile.TarInfo(f"./usr/share/sweethome3d/furniture/{name}.sh3f")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(
        ar_archive(
            {"debian-binary": b"2.0\n", "control.tar.xz": b"x", "data.tar.xz": data.getvalue()}
        )
    )
    return path


def sphere(rings: int = 24, segments: int = 48, radius: float = 0.8) -> SourceMesh:
    """A closed sphere with outward faces."""
    theta = np.linspace(0, np.pi, rings + 1)
    phi = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    grid = np.stack(
        [
            np.sin(theta)[:, None] * np.cos(phi),
            np.sin(theta)[:, None] * np.sin(phi),
            np.cos(theta)[:, None] + 0 * phi,
        ],
        -1,
    )
    i, j = np.meshgrid(np.arange(rings), np.arange(segments), indexing="ij")
    a, b = i * segments + j, i * segments + (j + 1) % segments
    c, d = a + segments, b + segments
    tri = np.concatenate([np.stack([a, c, d], -1), np.stack([a, d, b], -1)], 0).reshape(-1, 3)
    return plain(grid.reshape(-1, 3) * radius, tri)


def square(cells: int = 20) -> SourceMesh:
    """The unit square in z = 0 with u = 2 x and v = y, textured."""
    axis = np.linspace(0, 1, cells + 1)
    x, y = (g.reshape(-1) for g in np.meshgrid(axis, axis, indexing="ij"))
    i, j = (g.reshape(-1) for g in np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij"))
    a = i * (cells + 1) + j
    b, c, d = a + cells + 1, a + cells + 2, a + 1
    tri = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    return SourceMesh(
        v_pos=np.stack([x, y, 0 * x], 1),
        v_tex=np.stack([2 * x, y], 1),
        t_pos_idx=tri,
        t_tex_idx=tri.copy(),
        face_material=np.zeros(len(tri), np.int64),
        materials=(Material("wood", texture="wood.png"),),
    )


def plain(v_pos: np.ndarray, tri: np.ndarray) -> SourceMesh:
    """A mesh of one red material without a texture."""
    return SourceMesh(
        v_pos=v_pos,
        v_tex=np.zeros((0, 2)),
        t_pos_idx=tri,
        t_tex_idx=np.full_like(tri, -1),
        face_material=np.zeros(len(tri), np.int64),
        materials=(Material("red", (0.8, 0.1, 0.1)),),
    )


def signed_volume(v_pos: np.ndarray, tri: np.ndarray) -> float:
    """Volume by the divergence theorem."""
    a, b, c = (v_pos[tri[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)
