"""The pack that ships: complete, attributed, in our conventions, and free of brands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from renderers.cameras import orbit_cameras
from scenes.objects.errors import UnknownObject
from scenes.objects.pack import CAPTIONS_FILE, DATA, PACK_FILE, default_pack, load_object
from scenes.objects.render import ObjectGeometry, render_rgb
from scenes.objects.splits import SUBJECT_SOURCES
from scenes.objects.subjects import SUBJECTS
from scenes.toybox.objects import OBJECT_RADIUS

PACK = default_pack()
EVERY_TENTH = PACK.names()[::10]


def test_the_pack_is_compact_and_complete() -> None:
    assert len(PACK.names()) >= 700
    assert (DATA / PACK_FILE).stat().st_size < 40e6
    assert all(PACK.info(name).faces <= 4200 for name in PACK.names())


def test_every_object_is_free_to_use_and_attributed() -> None:
    text = (DATA / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| ([a-z0-9-]+) \|", text, flags=re.MULTILINE))
    assert rows - {"object"} == set(PACK.names())
    licences = Counter(PACK.info(name).licence for name in PACK.names())
    assert set(licences) == {"CC0 1.0", "CC BY 3.0", "CC BY 3.0 US"}
    assert all(PACK.info(name).author for name in PACK.names())


def test_captions_name_no_brands() -> None:
    brands = "ford|apple|playstation|vw|peugeot|renault|yamaha|chevrolet|iphone|imac|ibook|rubik"
    captions = [PACK.info(name).caption for name in PACK.names()]
    assert [c for c in captions if re.search(rf"\b({brands})\b", c)] == []
    assert [c for c in captions if not c.isascii() or c != c.lower()] == []


def test_splits_are_as_designed() -> None:
    share = {s: len(PACK.names(s)) / len(PACK.names()) for s in ("train", "held_out", "subject")}
    assert share["held_out"] == pytest.approx(0.10, abs=0.01)
    assert share["subject"] == pytest.approx(0.05, abs=0.01)
    assert sum(share.values()) == pytest.approx(1.0)
    held_out = {PACK.info(name).noun for name in PACK.names("held_out")}
    others = {PACK.info(n).noun for s in ("train", "subject") for n in PACK.names(s)}
    assert held_out.isdisjoint(others)


def test_the_twelve_subjects_are_there() -> None:
    assert len(SUBJECTS) == 12
    for name, (noun, source) in zip(SUBJECTS, SUBJECT_SOURCES.items()):
        info = PACK.info(name)
        assert (info.noun, info.source, info.split) == (noun, source, "subject")


@pytest.mark.parametrize("name", EVERY_TENTH)
def test_objects_are_whole_and_in_our_conventions(name: str) -> None:
    mesh = PACK.load(name)
    assert np.linalg.norm(mesh.v_pos, axis=1).max() == pytest.approx(OBJECT_RADIUS, rel=1e-2)
    middle = (mesh.v_pos.min(0) + mesh.v_pos.max(0)) / 2
    assert np.abs(middle).max() < 0.02 * OBJECT_RADIUS
    assert len(mesh.t_pos_idx) == len(mesh.face_material) == PACK.info(name).faces
    assert mesh.t_pos_idx.max() < len(mesh.v_pos)
    assert mesh.t_tex_idx.max(initial=0) <= max(len(mesh.v_tex) - 1, 0)
    assert mesh.image.max() == len(mesh.images) - 1
    assert all(max(image.shape[:2]) <= 128 for image in mesh.images)
    assert max(PACK.info(name).recolor, default=-1) < len(mesh.rgb)


@pytest.mark.parametrize("name", ["dog", "hamburger", "teddy-bear", "rabbit"])
def test_closed_objects_look_outwards(name: str) -> None:
    assert load_object(name).geometry().signed_volume() > 0


def test_a_beetle_is_yellow_and_symmetric() -> None:
    assert PACK.info("beetle-car").colors == ("yellow",)
    cameras = orbit_cameras(4, elevation_deg=0, distance=6, fovy_deg=18, height=48, width=48)
    geometry = ObjectGeometry(load_object("beetle-car"))
    _, mask = render_rgb(geometry, cameras, background=np.ones(3))
    assert mask[1].sum() > 1.5 * mask[0].sum()  # a car is longer than wide: azimuth 0 is an end
    mirrored = mask[0][:, ::-1]
    assert np.abs(mask[0] - mirrored).mean() < 0.03


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UnknownObject, match=r"has no 'teddybear', expected .*teddy-bear"):
        load_object("teddybear")


def test_opening_the_pack_imports_no_mesh_library() -> None:
    code = "import sys, scenes.objects.pack as p; p.load_object('dog')"
    code += "; print('trimesh' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_the_captions_file_is_sorted_by_name() -> None:
    assert PACK.names() == sorted(PACK.names())
    assert (DATA / CAPTIONS_FILE).read_text(encoding="utf-8").count("\n") == len(PACK.names()) + 2
