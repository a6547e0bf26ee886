"""Which files an asset consists of, and what becomes of those that were there before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studio.export.files import Asset, write_asset
from studio.export.gltf import png_bytes
from studio.export.shading import flatten
from studio.export.unwrap import patch_atlas
from tests.studio.export.meshes import box

ALL = ("glb", "obj", "ply")
OTHERS = {"notes.txt", "asset.usdz", "asset.glb.bak"}


def asset(*, textured: bool) -> Asset:
    mesh = box((1.0, 2.0, 1.0))
    painted = flatten(mesh, crease_deg=40.0, v_rgb=np.full((8, 3), 0.5))
    if not textured:
        return Asset("box", painted, painted, None, {})
    atlas = patch_atlas(len(mesh.t_pos_idx), texture_size=64)
    image = png_bytes(np.full((64, 64, 3), 0.5))
    return Asset("box", flatten(mesh, crease_deg=40.0, atlas=atlas), painted, image, {})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with an asset in all formats, and with files of the user's."""
    for name in OTHERS:
        (tmp_path / name).write_text("not ours")
    write_asset(asset(textured=True), tmp_path, formats=ALL, up="y")
    return tmp_path


def test_a_textured_asset_in_all_formats_is_six_files(folder):
    suffixes = ("glb", "obj", "mtl", "png", "ply")
    assert names(folder) - OTHERS == {"validation.json", *(f"asset.{one}" for one in suffixes)}


@pytest.mark.parametrize(
    ("formats", "left"),
    [
        (ALL, {"asset.glb", "validation.json", "asset.obj", "asset.ply"}),
        (("glb",), {"asset.glb", "validation.json"}),
        (("obj",), {"asset.obj"}),
        (("ply",), {"asset.ply"}),
    ],
)
def test_files_of_an_earlier_asset_go_and_those_of_others_stay(folder, formats, left):
    """They show another surface; vertex colours need neither the image nor its library."""
    files, _ = write_asset(asset(textured=False), folder, formats=formats, up="y")
    assert set(files.values()) == left
    assert names(folder) == left | OTHERS
