"""Reading what the furniture package holds: archives, catalogues, licences, models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scenes.objects.catalog import licence_of, read_catalog, work_of
from scenes.objects.debian import ar_members, read_libraries
from scenes.objects.errors import BrokenSource
from scenes.objects.naming import left_out, noun_of
from scenes.objects.obj_reader import read_obj
from scenes.objects.polygons import triangulate
from tests.scenes.objects.sources import (
    CUBE_OBJ,
    ar_archive,
    deb_file,
    library,
    sample_library,
    signed_volume,
)


def test_ar_members_come_back_even_with_odd_sizes() -> None:
    members = {"one": b"abc", "two": b"", "three": b"12345678"}
    assert ar_members(ar_archive(members)) == members


def test_libraries_are_found_inside_a_debian_package(tmp_path: Path) -> None:
    deb = deb_file(
        tmp_path / "furniture.deb", {"Zebra": sample_library(), "Test": sample_library()}
    )
    libraries = read_libraries(deb)
    assert list(libraries) == ["Test", "Zebra"]
    assert "test/cube/cube.obj" in libraries["Test"].namelist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04....", "expected b'!<arch>"),
        (ar_archive({"data.tar.xz": b"123456"})[:-3], "ends inside a member"),
        (ar_archive({"debian-binary": b"2.0\n"}), "has no data.tar member"),
    ],
)
def test_a_file_that_is_no_package_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(BrokenSource, match=message):
        read_libraries(tmp_path / "x.deb")


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenSource, match=r"There is no file .*nowhere\.deb"):
        read_libraries(tmp_path / "nowhere.deb")


def test_catalogue_entries_have_names_sizes_and_rotations() -> None:
    cube, plug, _ = read_catalog("Test", sample_library())
    assert (cube.key, cube.name, cube.creator) == ("cube", "Cube é", "Somebody")
    assert cube.tags == ("Toy", "Decoration")
    assert cube.size_cm == (20.0, 10.0, 40.0)
    assert np.array_equal(cube.rotation, np.eye(3))
    assert np.array_equal(plug.rotation, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    assert left_out(plug) == "no useful picture"
    assert left_out(cube) == ""
    assert noun_of(cube) == "cube é"


def test_a_model_has_its_own_licence_or_that_of_its_library() -> None:
    source = sample_library()
    cube, _, ball = read_catalog("Test", source)
    assert licence_of(cube, source).name == "CC BY 3.0 US"
    assert licence_of(cube, source).source == "LICENSE.TXT"
    assert licence_of(ball, source).name == "CC0 1.0"
    assert work_of(ball, source)[0] == "A Ball"


@pytest.mark.parametrize(
    "text",
    [
        "Released under Creative Commons Attribution-ShareAlike 3.0",
        "Released under Creative Commons Attribution Non-commercial 3.0",
        "Released under the GNU General Public License",
        "",
    ],
)
def test_models_under_other_terms_have_no_licence_for_us(text: str) -> None:
    source = library(
        {"LICENSE.TXT": "is under the Creative Commons Zero", "a/b/LICENSE.html": text}
    )
    cube = read_catalog("Test", sample_library())[0]
    entry = type(cube)(**{**cube.__dict__, "model": "a/b/c.obj"})
    assert licence_of(entry, source) is None


def test_a_library_without_a_catalogue_is_refused() -> None:
    with pytest.raises(BrokenSource, match=r"has no PluginFurnitureCatalog\.properties"):
        read_catalog("Empty", library({"x": b""}))


def test_a_cube_of_quadrilaterals_is_read_with_its_materials() -> None:
    mesh = read_obj(sample_library(), "test/cube/cube.obj")
    assert mesh.t_pos_idx.shape == (12, 3)
    assert signed_volume(mesh.v_pos, mesh.t_pos_idx) == pytest.approx(8.0)
    assert [m.name for m in mesh.materials] == ["face", "rest"]
    assert mesh.materials[0].texture == "test/cube/face.png"
    assert mesh.materials[1].rgb == (0.9, 0.1, 0.1)
    assert np.bincount(mesh.face_material).tolist() == [2, 10]
    front = mesh.t_pos_idx[mesh.face_material == 0]
    uv = mesh.v_tex[mesh.t_tex_idx[mesh.face_material == 0]]
    assert np.allclose(uv, (mesh.v_pos[front][..., :2] + 1) / 2)


def test_faces_may_have_positions_only_or_normals_too() -> None:
    text = "v 0 0 0\nv 1 0 0 0.5 0.5 0.5\nv 0 1 0\nvt 0 0\n"
    text += "f 1 2 3\nf 1//7 2//7 3//7\nf 3/1/1 2/1/1 1/1/1\n"
    mesh = read_obj(library({"m.obj": text}), "m.obj")
    assert mesh.t_pos_idx.tolist() == [[0, 1, 2], [0, 1, 2], [2, 1, 0]]
    assert mesh.t_tex_idx.tolist() == [[-1] * 3, [-1] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v 0 0 0\n", "has no faces"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -3\n", "has relative indices"),
        (CUBE_OBJ.replace("5/1 6/2", "5/1 9/2"), "uses index 9 of 8"),
    ],
)
def test_models_that_cannot_be_drawn_are_refused(text: str, message: str) -> None:
    with pytest.raises(BrokenSource, match=message):
        read_obj(library({"m.obj": text}), "m.obj")


def polygon_area(points: np.ndarray, triangles: np.ndarray) -> tuple[float, float]:
    """Summed and absolute area of triangles in the plane."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    signed = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    return float(signed.sum()), float(np.abs(signed).sum())


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("turned", [1, -1])
@pytest.mark.parametrize(
    "outline",
    [
        [(0, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2)],  # an L
        [(0, 0), (4, 0), (4, 3), (3, 3), (3, 1), (1, 1), (1, 3), (0, 3)],  # a U
        [(0, 0), (1, 0.2), (2, 0), (1, 2)],  # an arrow head
    ],
)
def test_concave_polygons_are_cut_inside_their_outline(
    outline: list, turned: int, axes: tuple[int, int, int]
) -> None:
    flat = np.array(outline, float)[::turned]
    points = np.concatenate([flat, np.full((len(flat), 1), 0.7)], 1)[:, np.argsort(axes)]
    triangles, owner = triangulate(points, np.arange(len(flat)), np.array([len(flat)]))
    signed, absolute = polygon_area(flat, triangles)
    x, y = flat.T
    expected = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    assert signed == pytest.approx(expected)
    assert absolute == pytest.approx(abs(expected))  # no triangle lies outside or is turned
    assert owner.tolist() == [0] * (len(flat) - 2)


def test_polygons_keep_their_order() -> None:
    points = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], float)
    corners = np.array([0, 1, 2, 0, 1, 2, 3, 1, 2, 3])
    _, owner = triangulate(points, corners, np.array([3, 4, 3]))
    assert owner.tolist() == [0, 1, 1, 2]
