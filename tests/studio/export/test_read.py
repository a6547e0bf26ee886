"""Files that cannot be read back are refused in one line."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from studio.errors import ConfigError
from studio.export.glb_check import read_glb
from studio.export.gltf import glb_bytes
from studio.export.read import load_asset
from studio.export.shading import flatten
from tests.studio.export.meshes import ball

FRAME = {"scene_frame": {"scale": 1.0, "base": [0.0, 0.0, 0.0]}}


def sound() -> bytes:
    mesh = ball(subdivisions=1)
    flat = flatten(mesh, crease_deg=40.0, v_rgb=np.full((len(mesh.v_pos), 3), 0.5))
    return glb_bytes(flat, texture_png=None, name="ball", extras=FRAME)


def repacked(change) -> bytes:
    """The sound file after ``change(document)``."""
    document, binary = read_glb(sound())
    document = change(document) or document
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def without_frame(document: dict) -> None:
    document["asset"]["extras"] = {}


def without_colours(document: dict) -> None:
    del document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]


def with_long_accessor(document: dict) -> None:
    document["accessors"][0]["count"] *= 2


BROKEN = {
    "empty": b"",
    "short": b"glTF",
    "text": b"o ball\nv 0 0 0\n" * 4,
    "cut": sound()[:-20],
    "a list": repacked(lambda _: [1, 2]),
    "another program's": repacked(without_frame),
    "neither texture nor colours": repacked(without_colours),
    "accessor past its view": repacked(with_long_accessor),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_one_clear_error(tmp_path, data):
    path = tmp_path / "asset.glb"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"asset\.glb is no whole GLB .* studio export RUN"):
        load_asset(path)


def test_folder_and_missing_file_are_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="no whole GLB"):
        load_asset(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        load_asset(tmp_path / "asset.glb")


def test_sound_file_is_read(tmp_path):
    (tmp_path / "asset.glb").write_bytes(repacked(lambda _: None))
    assert load_asset(tmp_path / "asset.glb").n_faces == 80
