"""The whole export of analytic fields: handedness, size, colours, and reading the files back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from studio.errors import Diverged, EmptyGeometry, StorageError
from studio.export.bake import surface_colours
from studio.export.configs import ExportConfig
from studio.export.glb_check import check_glb, read_accessor, read_glb
from studio.export.pipeline import export_field, export_mesh, export_painted
from studio.export.read import load_asset
from studio.export.triangles import Triangles
from tests.studio.export.analytic_fields import Ball, Balls, DistanceBall, Glow, robot

SMALL = {"resolution": 40, "search_resolution": 32, "max_faces": 2000, "texture_size": 256}
BARE = {**SMALL, "appearance": "vertex"}
ROBOT_COLOURS = {"nose": (0.9, 0.5, 0.1), "arm": (0.85, 0.15, 0.15), "head": (0.95, 0.85, 0.4)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The robot, textured, in all formats."""
    out = tmp_path_factory.mktemp("robot")
    export_field(robot(), ExportConfig(**SMALL), out, name="robot", extras={"seed": 1})
    return out


@pytest.fixture(scope="module")
def painted_folder(tmp_path_factory) -> Path:
    """The robot with vertex colours."""
    out = tmp_path_factory.mktemp("painted")
    export_field(robot(), ExportConfig(**BARE), out, name="robot")
    return out


def load(path: Path) -> trimesh.Trimesh:
    """One mesh of a file, vertices as stored."""
    loaded = trimesh.load(path, process=False)
    meshes = list(loaded.geometry.values()) if isinstance(loaded, trimesh.Scene) else [loaded]
    assert len(meshes) == 1
    return meshes[0]


def vertex_rgb(mesh: trimesh.Trimesh) -> np.ndarray:
    """Display-referred colours of the vertices, from texture or attribute, in 0..1."""
    visual = mesh.visual.to_color() if mesh.visual.kind == "texture" else mesh.visual
    return visual.vertex_colors[:, :3] / 255.0


def centre_of(mesh: trimesh.Trimesh, colour: tuple[float, float, float]) -> np.ndarray:
    """Mean position of the vertices of one colour."""
    near = np.abs(vertex_rgb(mesh) - colour).max(axis=1) < 0.06
    assert near.sum() > 5
    return mesh.vertices[near].mean(axis=0)


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_nothing_is_mirrored_and_the_front_faces_plus_z(folder, suffix):
    """World +x (front) is glTF +z, world +y (the robot's left) is +x, world +z (up) is +y."""
    mesh = load(folder / f"asset.{suffix}")
    nose, arm, head = (centre_of(mesh, ROBOT_COLOURS[part]) for part in ("nose", "arm", "head"))
    middle = mesh.bounds.mean(axis=0)
    assert nose[2] > 0.15
    assert abs(nose[0] - head[0]) < 0.05
    assert arm[0] > middle[0] + 0.1
    assert head[1] > middle[1]


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_asset_is_one_metre_high_and_stands_on_the_origin(folder, suffix):
    lower, upper = load(folder / f"asset.{suffix}").bounds
    assert upper[1] - lower[1] == pytest.approx(1.0, abs=1e-4)
    assert lower[1] == pytest.approx(0.0, abs=1e-4)
    np.testing.assert_allclose((lower + upper)[[0, 2]], 0.0, atol=1e-4)


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply"])
def test_faces_look_outwards(folder, suffix):
    mesh = load(folder / f"asset.{suffix}")
    assert Triangles.of(mesh.vertices, mesh.faces).volume() > 0.05
    outward = np.einsum("fi,fi->f", mesh.face_normals, mesh.vertex_normals[mesh.faces].mean(axis=1))
    assert np.median(outward) > 0.9


def test_z_up_files_keep_the_world_axes(tmp_path):
    config = ExportConfig(**BARE, up="z", formats=("glb", "ply"))
    export_field(robot(), config, tmp_path)
    ply, glb = load(tmp_path / "asset.ply"), load(tmp_path / "asset.glb")
    assert np.ptp(ply.vertices[:, 2]) == pytest.approx(1.0, abs=1e-4)
    assert np.ptp(glb.vertices[:, 1]) == pytest.approx(1.0, abs=1e-4)
    assert centre_of(ply, ROBOT_COLOURS["nose"])[0] > 0.15


def test_height_is_what_was_asked(tmp_path):
    export_field(robot(), ExportConfig(**BARE, height_m=0.25, formats=("glb",)), tmp_path)
    assert load(tmp_path / "asset.glb").extents[1] == pytest.approx(0.25, abs=1e-4)


def test_gray_is_sixty_in_texture_and_ply_and_linear_in_glb_colours(tmp_path):
    textured, painted = tmp_path / "textured", tmp_path / "painted"
    export_field(Ball(0.5), ExportConfig(**SMALL), textured)
    export_field(Ball(0.5), ExportConfig(**BARE), painted)
    assert set(np.array(Image.open(textured / "asset.png")).ravel()) == {60}
    assert set(vertex_rgb(load(textured / "asset.ply")).ravel() * 255.0) == {60.0}
    document, binary = read_glb((painted / "asset.glb").read_bytes())
    index = document["meshes"][0]["primitives"][0]["attributes"]["COLOR_0"]
    linear = read_accessor(document, binary, index)[:, :3] / 65535.0
    np.testing.assert_allclose(linear, 0.04508, atol=1e-5)


@pytest.mark.parametrize("which", ["folder", "painted_folder"])
def test_read_back_in_the_world_it_came_from(which, request):
    mesh = load_asset(request.getfixturevalue(which) / "asset.glb")
    assert float(mesh.signed_volume()) > 0.0
    # The nose reaches x = 0.24 + 0.08, the arm y = 0.42 + 0.14, the head z = 0.3 + 0.22.
    np.testing.assert_allclose(mesh.v_pos.amax(0).numpy(), [0.32, 0.56, 0.52], atol=0.05)
    np.testing.assert_allclose(mesh.v_pos.amin(0).numpy(), [-0.32, -0.32, -0.52], atol=0.05)
    assert (mesh.texture is None) == (mesh.v_rgb is not None)


def test_files_and_report_agree(folder):
    validation = json.loads((folder / "validation.json").read_text())
    glb = (folder / "asset.glb").read_bytes()
    assert validation == {"file": "asset.glb", "bytes": len(glb), "problems": []}
    assert check_glb(glb) == []
    assert (folder / "asset.mtl").read_text().count("map_Kd asset.png") == 1


def test_only_the_formats_asked_for_are_written(tmp_path):
    result = export_field(Ball(0.5), ExportConfig(**BARE, formats=("ply",)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["asset.ply"]
    assert result.files == {"ply": "asset.ply"}


def test_result_is_json_and_names_the_figures(tmp_path):
    speck = ((0.0, 0.0, 0.85), 0.05, (0.1, 0.1, 0.1))
    field = Balls((*robot().parts, speck))
    result = export_field(field, ExportConfig(**SMALL, formats=("glb",)), tmp_path)
    values = json.loads(json.dumps(result.as_dict()))
    assert values["floaters_dropped"] == 1
    assert values["n_faces"] <= 2000 < values["n_faces_extracted"]
    assert values["silhouette_iou"] > 0.9
    assert values["appearance"] == "charts"
    assert set(values["seconds"]) >= {"surface", "decimation", "unwrapping", "texture", "files"}


def test_spent_budget_makes_patches_and_many_faces_make_vertex_colours(tmp_path):
    config = ExportConfig(**SMALL, unwrap_budget_s=0.0, formats=("glb",))
    assert export_field(Ball(0.5), config, tmp_path).appearance == "patches"
    config = ExportConfig(**{**SMALL, "texture_size": 64}, unwrap_budget_s=0.0, formats=("glb",))
    assert export_field(Ball(0.5), config, tmp_path).appearance == "vertex"


def test_a_texture_that_the_triangles_do_not_fit_is_told(tmp_path):
    told: list[str] = []
    config = ExportConfig(**{**SMALL, "texture_size": 64}, unwrap_budget_s=0.0, formats=("glb",))
    export_field(Ball(0.5), config, tmp_path, progress=told.append)
    (warning,) = (text for text in told if text.startswith("warning"))
    assert "do not fit a texture of 64 pixels" in warning
    told.clear()
    plain = ExportConfig(**{**SMALL, "appearance": "vertex"}, formats=("glb",))
    export_field(Ball(0.5), plain, tmp_path, progress=told.append)
    assert not [text for text in told if text.startswith("warning")]


def test_distance_field_is_exported_too(tmp_path):
    result = export_field(DistanceBall(0.4), ExportConfig(**BARE, formats=("glb",)), tmp_path)
    assert result.threshold == 0.0
    assert result.silhouette_iou is None
    assert result.problems == ()


def test_existing_mesh_is_exported(tmp_path):
    box = trimesh.creation.box((1.0, 1.0, 1.0))
    soup = Triangles.of(box.triangles.reshape(-1, 3), np.arange(36))
    config = ExportConfig(**SMALL, formats=("glb",))
    result = export_mesh(soup, surface_colours(DistanceBall()), config, tmp_path)
    assert result.n_faces == 12
    assert result.problems == ()


def test_nothing_is_written_for_an_empty_field(tmp_path):
    with pytest.raises(EmptyGeometry):
        export_field(Glow(peak=0.01), ExportConfig(**SMALL), tmp_path / "asset")
    assert list((tmp_path / "asset").iterdir()) == []


def with_vertex(value: float) -> Triangles:
    corners = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, value]])
    return Triangles.of(corners, np.array([[0, 1, 2]]))


NO_FACES = Triangles.of(np.zeros((3, 3)), np.zeros((0, 3)))
UNSOUND = {
    "NaN": (with_vertex(float("nan")), Diverged, "1 of 3 vertices"),
    "infinity": (with_vertex(float("inf")), Diverged, "1 of 3 vertices"),
    "no faces": (NO_FACES, EmptyGeometry, "0 faces, none with an area"),
    "a point": (Triangles.of(np.ones((3, 3)), [[0, 1, 2]]), EmptyGeometry, "none with an area"),
}


@pytest.mark.parametrize("export", [export_mesh, export_painted])
@pytest.mark.parametrize(("mesh", "error", "words"), UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_meshes_are_told_and_nothing_is_written(tmp_path, export, mesh, error, words):
    with pytest.raises(error, match=words):
        export(mesh, surface_colours(DistanceBall()), ExportConfig(**SMALL), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_flat_sheet_is_exported_at_the_asked_size_and_seen_from_both_sides(tmp_path):
    corners = np.array([[0.0, 0.0, 0.2], [0.4, 0.0, 0.2], [0.4, 0.8, 0.2], [0.0, 0.8, 0.2]])
    sheet = Triangles.of(corners, np.array([[0, 1, 2], [0, 2, 3]]))
    config = ExportConfig(**BARE, formats=("glb",))
    result = export_painted(sheet, surface_colours(DistanceBall()), config, tmp_path)
    assert result.problems == ()
    assert load(tmp_path / "asset.glb").extents.max() == pytest.approx(1.0, abs=1e-6)
    document, _ = read_glb((tmp_path / "asset.glb").read_bytes())
    assert document["materials"][0]["doubleSided"] is True
    back = load_asset(tmp_path / "asset.glb").v_pos.numpy()
    np.testing.assert_allclose(np.unique(back, axis=0), np.unique(corners, axis=0), atol=1e-6)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_one_clear_error(tmp_path):
    tmp_path.chmod(stat.S_IREAD | stat.S_IEXEC)
    with pytest.raises(StorageError, match="write the asset to"):
        export_field(Ball(0.5), ExportConfig(**SMALL), tmp_path / "asset")


def test_file_in_place_of_the_folder_is_one_clear_error(tmp_path):
    (tmp_path / "asset").write_text("in the way")
    with pytest.raises(StorageError, match="write the asset to"):
        export_field(Ball(0.5), ExportConfig(**SMALL), tmp_path / "asset")
