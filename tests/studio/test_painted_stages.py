"""Stages that paint a mesh from a file: reading it, keeping its shape, resume, export, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from renderers.mesh_configs import MeshFileConfig
from studio.checkpoints import list_checkpoints, load_checkpoint
from studio.config import load_scene
from studio.errors import ConfigError, EmptyGeometry, WeightsMissing
from studio.export.configs import ExportConfig
from studio.export.pipeline import export_painted, export_run
from studio.export.read import load_asset
from studio.export.triangles import Triangles
from studio.runner import Runner
from studio.scene_inputs import check_inputs
from studio.stages import load_stage
from studio.start_mesh import read_mesh
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

PAINT = """
  - name: paint
    steps: 4
    field:
      kind: mesh_file
      path: MESH
      grid: {n_levels: 3, log2_hashmap_size: 8, base_resolution: 4, finest_resolution: 16}
      hidden_width: 8
    geometry: fixed
    renderer: {kind: mesh}
    background: {kind: random}
    cameras: {batch_size: 2, height: 16, width: 16, distance_range: [2.6, 3.2]}
    guidance: {guidance_scale: 7.0}
"""


def solid() -> trimesh.Trimesh:
    """A box and a ball that overlap it: two closed parts, as models often are."""
    ball = trimesh.creation.icosphere(1, radius=0.4)
    ball.apply_translation((0.5, 0.1, 0.3))
    return trimesh.util.concatenate([trimesh.creation.box((1.0, 0.6, 0.8)), ball])


@pytest.fixture(scope="module")
def mesh_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("meshes") / "thing.ply"
    solid().export(path)
    return path


@pytest.fixture(scope="module")
def paint_scene(tiny_scene, mesh_file, tmp_path_factory) -> Path:
    """The tiny scene with one stage that paints."""
    text = tiny_scene.read_text(encoding="utf-8")
    head, tail = text.split("stages:")[0], text[text.index("export:") :]
    path = tmp_path_factory.mktemp("scenes") / "paint.yaml"
    path.write_text(head + "stages:" + PAINT.replace("MESH", str(mesh_file)) + tail)
    return path


def silhouettes(runner: Runner) -> torch.Tensor:
    with torch.no_grad():
        return runner.stage.renderer.render(runner.preview_views).opacity


def test_painting_keeps_the_silhouette_exactly_and_changes_the_colours(paint_scene, tmp_path):
    scene, run = start(paint_scene, tmp_path)
    runner = Runner(scene, run)
    before = silhouettes(runner)
    with torch.no_grad():
        grey = runner.stage.renderer.render(runner.preview_views).comp_rgb
    runner.optimise()
    assert torch.equal(silhouettes(runner), before)
    loaded = load_stage(run)
    with torch.no_grad():
        after = loaded.renderer.render(runner.preview_views)
    assert torch.equal(after.opacity, before)
    assert float((after.comp_rgb - grey).abs().max()) > 1e-3
    moments = load_checkpoint(list_checkpoints(run.checkpoints_dir)[-1]).optim
    assert not any("v_pos" in key for key in moments)


def test_it_resumes_bit_for_bit_after_the_file_is_gone(paint_scene, mesh_file, tmp_path):
    own = tmp_path / "own.ply"
    own.write_bytes(mesh_file.read_bytes())
    override = f"stages.0.field.path={own}"
    scene, whole = start(paint_scene, tmp_path / "whole", override)
    expected = run_to_the_end(scene, whole)
    _, parts = start(paint_scene, tmp_path / "parts", override)
    first = Runner(scene, parts)
    first.has_next()
    first.step()
    first.save()
    own.unlink()
    assert_equal_bits(expected, run_to_the_end(scene, parts))
    assert load_stage(parts).field.mesh().n_faces == len(solid().faces)


def test_the_asset_has_every_triangle_where_it_was(paint_scene, mesh_file, tmp_path):
    scene, run = start(paint_scene, tmp_path, "export.max_faces=100", "stages.0.steps=1")
    Runner(scene, run).optimise()
    result = export_run(run)
    assert result.problems == ()
    assert result.n_faces == len(solid().faces)
    asset = load_asset(run.asset_dir / "asset.glb")
    mine = read_mesh(scene.stages[0].field)
    found, wanted = (m.v_pos[m.t_pos_idx].mean(1) for m in (asset, mine))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_critic_guides_painting_too(paint_scene, tmp_path):
    rule = "stages.0.guidance={kind: vsd, guidance_scale: 7.5, critic: {rank: 2}}"
    scene, run = start(paint_scene, tmp_path, rule, "stages.0.steps=2")
    metrics = Runner(scene, run).optimise()
    assert metrics["critic_loss"] > 0.0


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ply", "stl", "obj", "glb"])
def test_every_kind_of_file_gives_the_same_mesh(suffix, tmp_path):
    """+z is up in PLY and STL, +y in OBJ and GLB, whose axes are (y, z, x) of the world."""
    thing = solid()
    if suffix in ("obj", "glb"):
        thing.vertices = thing.vertices[:, [1, 2, 0]]
    thing.export(tmp_path / f"thing.{suffix}")
    mesh = read_mesh(MeshFileConfig(path=str(tmp_path / f"thing.{suffix}"), sphere_radius=None))
    wanted = solid()
    assert mesh.n_faces == len(wanted.faces)
    assert float(mesh.signed_volume()) == pytest.approx(float(wanted.volume), rel=1e-4)
    low, high = mesh.v_pos.amin(0).numpy(), mesh.v_pos.amax(0).numpy()
    np.testing.assert_allclose([low, high], wanted.bounds, atol=1e-5)


def test_up_may_be_told(tmp_path):
    solid().export(tmp_path / "thing.obj")
    path = str(tmp_path / "thing.obj")
    told = read_mesh(MeshFileConfig(path=path, up="z", sphere_radius=None))
    np.testing.assert_allclose(told.v_pos.amax(0).numpy(), solid().bounds[1], atol=1e-5)


def test_an_own_asset_comes_back_into_its_scene(tmp_path):
    thing = solid()
    mesh = Triangles.of(thing.vertices, thing.faces)
    config = ExportConfig(appearance="vertex", formats=("glb",))
    export_painted(mesh, lambda x, _: torch.full_like(x, 0.4), config, tmp_path)
    read = read_mesh(MeshFileConfig(path=str(tmp_path / "asset.glb"), sphere_radius=None))
    np.testing.assert_allclose(read.v_pos.amax(0).numpy(), thing.bounds[1], atol=1e-5)
    assert read.n_faces == len(thing.faces)


def test_a_mesh_is_made_to_fill_its_sphere(mesh_file):
    mesh = read_mesh(MeshFileConfig(path=str(mesh_file), sphere_radius=0.7))
    assert float(mesh.v_pos.norm(dim=1).max()) == pytest.approx(0.7, rel=1e-5)
    middle = (mesh.v_pos.amin(0) + mesh.v_pos.amax(0)) / 2
    assert float(middle.abs().max()) < 1e-6


def test_faces_without_area_are_left_out(tmp_path):
    thing = trimesh.creation.box()
    flat = np.concatenate([thing.faces, [[0, 0, 1]]])
    trimesh.Trimesh(thing.vertices, flat, process=False).export(tmp_path / "thing.ply")
    assert read_mesh(MeshFileConfig(path=str(tmp_path / "thing.ply"))).n_faces == 12


def test_a_closed_mesh_that_is_inside_out_is_turned(tmp_path):
    thing = trimesh.creation.box()
    thing.faces = thing.faces[:, ::-1]
    thing.export(tmp_path / "thing.ply")
    assert float(read_mesh(MeshFileConfig(path=str(tmp_path / "thing.ply"))).signed_volume()) > 0.0


def test_an_open_mesh_is_painted_and_said_so(tmp_path, capsys):
    thing = trimesh.creation.box()
    thing.update_faces(np.arange(12) > 1)
    thing.export(tmp_path / "open.ply")
    assert read_mesh(MeshFileConfig(path=str(tmp_path / "open.ply"))).n_faces == 10
    assert "open.ply is not closed (4 open edges)" in capsys.readouterr().err


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("", None, "field.path: is empty"),
        ("absent.glb", None, "there is no file"),
        ("thing.txt", b"x", "of no known kind"),
        ("thing.glb", b"glTF but no more", "cannot be read"),
        ("short.glb", b"gl", "cannot be read"),
        ("thing.obj", b"", "cannot be read|no faces"),
    ],
)
def test_files_that_are_no_mesh_are_refused(name, content, said, tmp_path):
    path = str(tmp_path / name) if name else ""
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises((ConfigError, EmptyGeometry), match=said):
        read_mesh(MeshFileConfig(path=path))


def test_points_without_faces_are_refused(tmp_path):
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "points.ply")
    with pytest.raises((EmptyGeometry, ConfigError), match=r"no faces|cannot be read"):
        read_mesh(MeshFileConfig(path=str(tmp_path / "points.ply")))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.0.geometry=free", "geometry: a mesh from a file keeps its shape"),
        ("stages.0.renderer.kind=volume", "renderer: expected {kind: mesh} for a mesh"),
        ("stages.0.losses.laplacian=1", "acts on the shape, which geometry: fixed keeps"),
        ("stages.0.guide_on=normals", "normals act on the shape"),
        (
            "stages.0.guidance={kind: instruct_sds, model: {weights: x}}",
            "expected edit.run and edit.instruction",
        ),
        (
            "stages.0.guidance={kind: control_sds, controls: [{net: {weights: x, window: "
            "{kind: steps, end: 0.5}}}]}",
            "net.window",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(override, said, paint_scene):
    with pytest.raises(ConfigError) as error:
        load_scene(paint_scene, [override])
    assert said in str(error.value)


def test_missing_inputs_are_refused_before_a_run_begins(paint_scene):
    with pytest.raises(ConfigError, match=r"field\.path: is empty"):
        check_inputs(load_scene("pocket-texture-mesh").config)
    control = "stages.0.guidance={kind: control_sds, controls: [{net: {weights: pocket-nothing}}]}"
    with pytest.raises(WeightsMissing, match="pocket-nothing"):
        check_inputs(load_scene(paint_scene, [control]).config)
    check_inputs(load_scene(paint_scene).config)


def test_a_uni_controlnet_and_its_picture_are_looked_for_before_a_run_begins(mesh_file, tmp_path):
    model, photo = tmp_path / "uni.safetensors", tmp_path / "photo.png"
    given = [
        f"stages.0.field.path={mesh_file}",
        f"stages.0.guidance.uni.model={model}",
        f"stages.0.guidance.uni.content={{path: {photo}, encoder: {tmp_path / 'clip'}}}",
    ]
    scene = load_scene("pocket-texture-uni", given).config
    assert [one.sees for one in scene.stages[0].guidance.uni.maps] == ["depth", "normals"]
    with pytest.raises(WeightsMissing, match=r"stages\.0\.guidance\.uni\.model are missing"):
        check_inputs(scene)
    model.write_bytes(b"")
    with pytest.raises(WeightsMissing, match=r"uni\.content\.encoder are missing"):
        check_inputs(scene)
    (tmp_path / "clip").mkdir()
    with pytest.raises(ConfigError, match=r"stages\.0\.guidance\.uni\.content\.path: .*photo"):
        check_inputs(scene)
    Image.new("RGB", (8, 8)).save(photo)
    check_inputs(scene)
