"""The bytes of the pack: round trips, determinism, a whole build, damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from scenes.objects.build import build_pack, described_colors, named
from scenes.objects.catalog import read_catalog
from scenes.objects.codec import decode, encode
from scenes.objects.convert import convert
from scenes.objects.errors import BrokenSource, UnknownObject
from scenes.objects.mesh import ObjectMesh
from scenes.objects.pack import ObjectPack
from tests.scenes.objects.sources import deb_file, sample_library


@pytest.fixture
def cube() -> ObjectMesh:
    """A cube with an image on its front."""
    source = sample_library()
    return convert(read_catalog("Test", source)[0], source)


def corners(mesh: ObjectMesh) -> np.ndarray:
    """Sorted rows of everything that a triangle shows: places, coordinates, material."""
    where = mesh.v_pos[mesh.t_pos_idx].reshape(len(mesh.t_pos_idx), -1)
    has = (mesh.image[mesh.face_material] >= 0)[:, None]
    uv = mesh.v_tex[mesh.t_tex_idx].reshape(len(where), -1) * has
    part = np.array([mesh.parts.index(mesh.parts[k]) for k in mesh.face_material])
    rows = np.concatenate([where, uv, mesh.rgb[mesh.face_material], part[:, None]], 1)
    return rows[np.lexsort(np.round(rows, 3).T)]


def test_an_object_survives_its_bytes(cube: ObjectMesh) -> None:
    again = decode("cube", encode(cube))
    assert np.allclose(corners(again), corners(cube), atol=2e-3)
    assert np.abs(again.v_pos).max() == pytest.approx(np.abs(cube.v_pos).max(), abs=1e-4)
    assert again.parts == cube.parts
    assert np.abs(again.images[0].astype(int) - cube.images[0]).max() <= 6  # WebP is lossy


def test_equal_objects_have_equal_bytes(cube: ObjectMesh) -> None:
    source = sample_library()
    assert encode(cube) == encode(convert(read_catalog("Test", source)[0], source))
    once = encode(decode("cube", encode(cube)))
    assert np.array_equal(decode("cube", once).t_pos_idx, decode("cube", encode(cube)).t_pos_idx)


def test_damaged_bytes_are_refused(cube: ObjectMesh) -> None:
    with pytest.raises(BrokenSource, match="entry for 'cube' cannot be read"):
        decode("cube", encode(cube)[:100])


def test_colour_words_come_from_what_is_seen(cube: ObjectMesh) -> None:
    shares, words, main = described_colors(cube)
    assert words == ("red",)
    assert shares["red"] > 0.55
    assert shares["green"] > 0.05  # the image on the front
    assert [cube.parts[k] for k in main] == ["rest"]


def test_names_are_numbered_where_nouns_repeat() -> None:
    nouns = {
        "a/1": "armchair",
        "a/2": "Rubik's cube".lower(),
        "b/1": "armchair",
        "Scopia/dog": "dog",
    }
    assert named(nouns) == {
        "Scopia/dog": "dog",
        "a/1": "armchair",
        "a/2": "rubiks-cube",
        "b/1": "armchair-2",
    }


def test_a_build_makes_a_pack_that_opens(tmp_path: Path) -> None:
    deb = deb_file(tmp_path / "x.deb", {"Test": sample_library()})
    lines: list[str] = []
    count = build_pack(deb, tmp_path / "pack", log=lines.append)
    assert count == 2
    assert lines == ["left out: Test/plug (Wall plug): no useful picture"]
    pack = ObjectPack(tmp_path / "pack")
    assert pack.names() == ["ball", "cube-"] or pack.names() == ["ball", "cube"]
    info = pack.info("ball")
    assert (info.licence, info.author, info.caption) == ("CC0 1.0", "Another", "a green ball")
    assert info.size_cm == (10.0, 10.0, 10.0)
    assert pack.load("ball") is pack.load("ball")
    text = (tmp_path / "pack" / "ATTRIBUTION.md").read_text()
    assert "| ball | Ball (ball) | Another | CC0 1.0 |" in text
    assert "Somebody | CC BY 3.0 US* |" in text


def test_a_second_build_gives_the_same_bytes_and_reuses_its_scratch(tmp_path: Path) -> None:
    deb = deb_file(tmp_path / "x.deb", {"Test": sample_library()})
    (tmp_path / "scratch").mkdir()
    for name, scratch in (
        ("one", None),
        ("two", tmp_path / "scratch"),
        ("three", tmp_path / "scratch"),
    ):
        build_pack(deb, tmp_path / name, log=lambda line: None, scratch=scratch)
    for file in ("objects.zip", "captions.json", "ATTRIBUTION.md"):
        contents = {(tmp_path / name / file).read_bytes() for name in ("one", "two", "three")}
        assert len(contents) == 1
    assert len(list((tmp_path / "scratch").iterdir())) == 2


def test_a_folder_without_a_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenSource, match="holds no object pack"):
        ObjectPack(tmp_path)
    (tmp_path / "captions.json").write_text(json.dumps({"objects": []}))
    (tmp_path / "objects.zip").write_bytes(b"no zip")
    with pytest.raises(BrokenSource, match="holds no object pack"):
        ObjectPack(tmp_path)


def test_a_pack_that_lacks_a_listed_object_says_so(tmp_path: Path) -> None:
    deb = deb_file(tmp_path / "x.deb", {"Test": sample_library()})
    build_pack(deb, tmp_path / "pack", log=lambda line: None)
    path = tmp_path / "pack" / "captions.json"
    path.write_text(path.read_text().replace('"name": "ball"', '"name": "bell"'))
    pack = ObjectPack(tmp_path / "pack")
    with pytest.raises(BrokenSource, match="damaged at 'bell'"):
        pack.load("bell")
    with pytest.raises(UnknownObject, match=r"has no 'bel', expected .* such as bell"):
        pack.info("bel")
