"""GLB files: colours, bounds, and what the structural check and the Khronos validator say."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import trimesh

from studio.export.glb_check import check_glb, read_accessor, read_glb
from studio.export.gltf import glb_bytes, linear_to_srgb, png_bytes, srgb_to_linear
from studio.export.shading import FlatMesh, flatten
from studio.export.triangles import Triangles
from studio.export.unwrap import patch_atlas
from tests.studio.export.analytic_fields import GRAY

VALIDATOR = Path(__file__).parents[1] / "gltf_validator.mjs"


def ball(subdivisions: int = 2) -> Triangles:
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return Triangles.of(mesh.vertices, mesh.faces)


def painted() -> bytes:
    mesh = ball()
    flat = flatten(mesh, crease_deg=40.0, v_rgb=np.full((len(mesh.v_pos), 3), GRAY))
    return glb_bytes(flat, texture_png=None, name="ball", extras={"prompt": "ein Bällchen"})


def textured() -> bytes:
    mesh = ball()
    atlas = patch_atlas(len(mesh.t_pos_idx), texture_size=256)
    flat = flatten(mesh, crease_deg=40.0, atlas=atlas)
    png = png_bytes(np.full((256, 256, 3), GRAY))
    return glb_bytes(flat, texture_png=png, name="ball", extras={"seed": 3})


def many_vertices() -> bytes:
    """A flat grid with more vertices than 16-bit indices can address."""
    side = 260
    x, z = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    position = np.stack([x, np.zeros_like(x), z], axis=-1).reshape(-1, 3).astype(np.float32)
    corner = (x * side + z)[:-1, :-1].reshape(-1)
    a, b, c, d = corner, corner + 1, corner + side, corner + side + 1
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)])
    up = np.tile(np.array([[0.0, 1.0, 0.0]], dtype=np.float32), (side * side, 1))
    flat = FlatMesh(position, up, faces, rgb=np.full_like(position, GRAY))
    return glb_bytes(flat, texture_png=None, name="big")


FILES = {"painted": painted, "textured": textured, "many vertices": many_vertices}


@pytest.mark.parametrize("make", FILES.values(), ids=FILES.keys())
def test_structural_check_finds_nothing(make):
    assert check_glb(make()) == []


@pytest.fixture(scope="module")
def validator_folder(tmp_path_factory) -> Path:
    """Where npm installed gltf-validator: GLTF_VALIDATOR, or a node_modules above this file."""
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    places = [os.environ.get("GLTF_VALIDATOR"), *Path(__file__).parents]
    for place in places:
        if place and (Path(place) / "node_modules" / "gltf-validator").is_dir():
            return Path(place)
    pytest.skip(
        "gltf-validator is not installed: npm install --no-save gltf-validator (anywhere above "
        "the tests, or name its folder in GLTF_VALIDATOR)"
    )


def khronos_issues(folder: Path, files: list[Path]) -> dict[str, dict]:
    command = ["node", str(VALIDATOR), str(folder), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)


def test_khronos_validator_finds_nothing(validator_folder, tmp_path):
    files = []
    for name, make in FILES.items():
        files.append(tmp_path / f"{name}.glb")
        files[-1].write_bytes(make())
    for name, issues in khronos_issues(validator_folder, files).items():
        assert issues["messages"] == [], name


def test_khronos_validator_is_really_asked(validator_folder, tmp_path):
    """A file with a normal of length two must be refused."""
    flat = flatten(ball(1), crease_deg=40.0)
    wrong = FlatMesh(flat.position, 2.0 * flat.normal, flat.faces)
    path = tmp_path / "wrong.glb"
    path.write_bytes(glb_bytes(wrong, texture_png=None, name="wrong"))
    assert khronos_issues(validator_folder, [path])[str(path)]["numErrors"] > 0


def test_vertex_colours_are_linear_sixteen_bit():
    document, binary = read_glb(painted())
    index = document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    accessor = document["accessors"][index]
    color = read_accessor(document, binary, index)
    assert (accessor["type"], accessor["componentType"], accessor["normalized"]) == (
        "VEC4",
        5123,
        True,
    )
    np.testing.assert_allclose(color[:, :3] / 65535.0, 0.04508, atol=1e-5)
    assert (color[:, 3] == 65535).all()


def test_texture_keeps_display_referred_bytes(tmp_path):
    path = tmp_path / "textured.glb"
    path.write_bytes(textured())
    scene = trimesh.load(path)
    image = next(iter(scene.geometry.values())).visual.material.baseColorTexture
    assert set(np.array(image.convert("RGB")).ravel()) == {60}


def test_material_and_asset_say_what_they_should():
    document, _ = read_glb(textured())
    material = document["materials"][0]
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0.0
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 0.9
    assert material["doubleSided"] is False
    assert document["asset"]["extras"] == {"seed": 3}
    targets = [view.get("target") for view in document["bufferViews"]]
    assert targets == [34962, 34962, 34962, 34963, None]


def test_open_surface_is_drawn_from_both_sides():
    mesh = ball()
    half = flatten(mesh.keep_faces(mesh.corners()[:, :, 2].mean(axis=1) > 0.0), crease_deg=40.0)
    document, _ = read_glb(glb_bytes(half, texture_png=None, name="bowl"))
    assert document["materials"][0]["doubleSided"] is True


def test_prompt_survives_as_unicode():
    document, _ = read_glb(painted())
    assert document["asset"]["extras"]["prompt"] == "ein Bällchen"


def test_transfer_function_round_trip():
    values = np.linspace(0.0, 1.0, 1001)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7)
    assert srgb_to_linear(np.array(0.5)) == pytest.approx(0.2140, abs=1e-4)


def _without_tail(data: bytes) -> bytes:
    return data[:-8]


def _wrong_magic(data: bytes) -> bytes:
    return b"glTX" + data[4:]


def _edited(edit):
    """A file whose JSON went through ``edit``; the binary chunk stays."""

    def change(data: bytes) -> bytes:
        document, binary = read_glb(data)
        edit(document)
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    return change


def _poked(value: float, at: str):
    """A file with one float of an attribute overwritten."""

    def change(data: bytes) -> bytes:
        document, binary = read_glb(data)
        index = document["meshes"][0]["primitives"][0]["attributes"][at]
        view = document["bufferViews"][document["accessors"][index]["bufferView"]]
        offset = view["byteOffset"]
        changed = binary[:offset] + struct.pack("<f", value) + binary[offset + 4 :]
        return data.replace(binary, changed)

    return change


BROKEN = {
    "container": (_without_tail, "container"),
    "magic": (_wrong_magic, "magic"),
    "count": (_edited(lambda d: d["accessors"][0].update(count=10**6)), "does not fit"),
    "bounds": (_edited(lambda d: d["accessors"][0].update(max=[9.0, 9.0, 9.0])), "bounds"),
    "view": (_edited(lambda d: d["bufferViews"][0].update(byteOffset=2)), "misaligned"),
    "lengths": (_edited(lambda d: d["accessors"][1].update(count=5)), "differ in length"),
    "normal": (_poked(7.0, "NORMAL"), "unit length"),
    "position": (_poked(float("nan"), "POSITION"), "NaN"),
    "image": (_edited(lambda d: d["images"][0].update(mimeType="image/jpeg")), "declared"),
}


@pytest.mark.parametrize(("change", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_structural_check_finds_what_is_broken(change, words):
    problems = check_glb(change(textured()))
    assert any(words in problem for problem in problems), problems


def test_index_out_of_range_is_found():
    flat = flatten(ball(1), crease_deg=40.0)
    wrong = FlatMesh(flat.position, flat.normal, flat.faces + 1)
    problems = check_glb(glb_bytes(wrong, texture_png=None, name="wrong"))
    assert any("vertices" in problem for problem in problems)


def test_degenerate_triangle_is_found():
    flat = flatten(ball(1), crease_deg=40.0)
    faces = np.concatenate([flat.faces, [[0, 0, 1]]])
    problems = check_glb(
        glb_bytes(FlatMesh(flat.position, flat.normal, faces), texture_png=None, name="wrong")
    )
    assert problems == ["1 triangles have no area"]
