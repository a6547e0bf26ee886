"""Stages that optimise a mesh: how they begin, what they keep, how they resume and end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from renderers.errors import EmptyGeometry
from renderers.fields.tet_mesh import TetMeshField
from studio.checkpoints import list_checkpoints, load_checkpoint, load_latest
from studio.export.pipeline import export_run
from studio.export.read import load_asset
from studio.finish import finish_run
from studio.metrics_log import read_metrics
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.stages import load_stage
from studio.turntable import asset_render, field_render, orbit_of
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

MESH_STAGES = """  - name: mesh
    steps: 3
    field: {kind: grid_tets, resolution: 8}
    renderer: {kind: mesh}
    background: {kind: random}
    cameras: {batch_size: 2, height: 16, width: 16, distance_range: [2.6, 3.2]}
    guidance: {guidance_scale: 7.0}
    losses: {normal_consistency: 10.0, laplacian: [[0, 0], [1, 5]]}
    optimizer: {geometry: 0.05}
  - name: paint
    steps: 2
    field: {kind: previous}
    geometry: fixed
    renderer: {kind: mesh}
    background: {kind: random}
    cameras: {batch_size: 1, height: 16, width: 16, distance_range: [2.6, 3.2]}
    guidance: {guidance_scale: 7.0}
export:"""


@pytest.fixture(scope="module")
def mesh_scene(tiny_scene, tmp_path_factory) -> Path:
    """A field, then a mesh, then its colours."""
    path = tmp_path_factory.mktemp("scenes") / "mesh.yaml"
    text = tiny_scene.read_text(encoding="utf-8").replace("steps: 6", "steps: 2")
    path.write_text(text.replace("export:", MESH_STAGES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(mesh_scene, tmp_path_factory) -> tuple[RunFolder, Runner]:
    """A run to its end, with asset and pictures, and the runner that made it."""
    scene, run = start(mesh_scene, tmp_path_factory.mktemp("mesh"), "saving.keep_checkpoints=9")
    runner = Runner(scene, run)
    runner.optimise()
    finish_run(run)
    return run, runner


def step_until(runner: Runner, total: int) -> None:
    """Step until this many steps of the run are done."""
    while runner.steps_done < total:
        assert runner.has_next()
        runner.step()


def test_a_mesh_begins_with_the_surface_and_exactly_the_colours_of_the_field(mesh_scene, tmp_path):
    scene, run = start(mesh_scene, tmp_path)
    runner = Runner(scene, run)
    step_until(runner, 2)
    field = runner.stage.field
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    expected = field.albedo(points)
    assert runner.has_next()
    mesh = runner.stage.field
    assert isinstance(mesh, TetMeshField)
    assert torch.equal(mesh.albedo(points), expected)
    surface = mesh.mesh()
    assert float(surface.signed_volume()) > 0.05
    assert float(field.density(mesh.centre[None])) > float(field.density(surface.v_pos).max())


def test_fixed_geometry_trains_colours_only(finished):
    run, _ = finished
    before, after = (
        load_checkpoint(path).scene
        for path in list_checkpoints(run.checkpoints_dir)
        if path.name in ("step-000006", "step-000007")
    )
    assert torch.equal(before["field.sdf"], after["field.sdf"])
    assert torch.equal(before["field.offsets"], after["field.offsets"])
    name = "field.colour.grid.table"
    assert not torch.equal(before[name], after[name])
    moments = load_checkpoint(list_checkpoints(run.checkpoints_dir)[-1]).optim
    assert not any(key.startswith(("field.sdf", "field.offsets")) for key in moments)


def test_free_geometry_moves(finished):
    run, _ = finished
    scenes = {path.name: load_checkpoint(path) for path in list_checkpoints(run.checkpoints_dir)}
    mid, end = scenes["step-000004"].scene, scenes["step-000006"].scene
    assert not torch.equal(mid["field.sdf"], end["field.sdf"])
    assert not torch.equal(mid["field.offsets"], end["field.offsets"])


@pytest.mark.parametrize("stops", [(2,), (3,), (5, 6)], ids=["between", "mesh", "twice"])
def test_a_run_stopped_in_a_mesh_stage_resumes_bit_for_bit(stops, mesh_scene, finished, tmp_path):
    scene, run = start(mesh_scene, tmp_path)
    for stop in stops:
        runner = Runner(scene, run)
        step_until(runner, stop)
        runner.save()
    expected = list_checkpoints(finished[0].checkpoints_dir)[-1]
    assert_equal_bits(expected, run_to_the_end(scene, run))


def test_a_loaded_mesh_stage_renders_like_the_trained_one(finished):
    run, runner = finished
    loaded = load_stage(run)
    assert isinstance(loaded.field, TetMeshField)
    assert loaded.stage.name == "paint"
    with torch.no_grad():
        expected = runner.stage.renderer.render(runner.preview_views)
        images = loaded.renderer.render(runner.preview_views)
    assert torch.equal(images.comp_rgb, expected.comp_rgb)


def test_the_asset_is_the_mesh_itself(finished):
    run, _ = finished
    info = run.read_info()
    assert info["status"] == "done"
    assert info["export"]["problems"] == []
    assert info["export"]["silhouette_iou"] is None
    stage = load_stage(run)
    assert info["export"]["n_faces_extracted"] == stage.field.mesh().n_faces
    cameras = orbit_of(stage, 3, size=48)
    with torch.no_grad():
        mesh = field_render(stage)(cameras)
        asset = asset_render(load_asset(run.asset_dir / "asset.glb"))(cameras)
    seen, exported = mesh.opacity > 0.5, asset.opacity > 0.5
    assert float((seen & exported).sum() / (seen | exported).sum()) > 0.97
    names = {path.name for path in run.renders_dir.iterdir()}
    assert names == {"turntable.mp4", "turntable.gif", "contact_sheet.png"}
    assert run.report_path.is_file()


def test_vertex_colours_of_the_asset_are_those_of_the_mesh(finished):
    run, _ = finished
    stage = load_stage(run)
    config = stage.config.export.__class__(appearance="vertex", max_faces=10_000, formats=("glb",))
    export_run(run, config)
    asset = load_asset(run.asset_dir / "asset.glb")
    with torch.no_grad():
        expected = stage.field.albedo(asset.v_pos)
    assert torch.allclose(asset.v_rgb, expected, atol=0.02)


def test_metrics_name_the_work_of_each_stage(finished):
    rows = read_metrics(finished[0].metrics_path)
    assert [row["stage"] for row in rows] == ["shape"] * 2 + ["mesh"] * 3 + ["paint"] * 2
    assert all(float(row["faces"]) > 10 for row in rows[2:])
    assert all(row["faces"] == "" and float(row["samples"]) > 10 for row in rows[:2])
    assert [float(row["loss_normal_consistency"]) > 0 for row in rows] == [False] * 2 + [
        True
    ] * 3 + [False] * 2
    assert float(rows[2]["loss_laplacian"]) == 0.0
    assert float(rows[4]["loss_laplacian"]) > 0.0


def test_previews_show_a_mesh(mesh_scene, tmp_path):
    scene, run = start(mesh_scene, tmp_path, "saving.preview_every=1")
    Runner(scene, run).optimise()
    sheets = sorted(run.previews_dir.glob("*.png"))
    assert len(sheets) == 7
    with Image.open(sheets[4]) as image:
        assert len(set(image.convert("L").getdata())) > 20


def test_an_empty_field_gives_no_mesh(mesh_scene, tmp_path):
    scene, run = start(mesh_scene, tmp_path, "stages.1.field.threshold=1e5")
    with pytest.raises(EmptyGeometry, match=r"No surface to make a mesh of.*max"):
        Runner(scene, run).optimise()
    assert run.read_info()["status"] == "failed"
    kept = load_latest(run.checkpoints_dir, warn=print).state
    assert (kept["stage"], kept["stage_step"]) == (0, 2)  # the stage that ended is not lost


def test_guidance_on_normals_moves_the_shape_and_leaves_the_colours(mesh_scene, tmp_path):
    scene, run = start(
        mesh_scene,
        tmp_path,
        "stages.1.guide_on=normals",
        "stages.1.losses.normal_consistency=0",
        "stages.1.losses.laplacian=0",
    )
    runner = Runner(scene, run)
    step_until(runner, 2)
    assert runner.has_next()
    before = {name: value.clone() for name, value in runner.stage.renderer.state_dict().items()}
    step_until(runner, 5)
    after = runner.stage.renderer.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"field.sdf", "field.offsets"}
