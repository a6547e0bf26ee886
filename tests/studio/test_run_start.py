"""A finished run as the start of another: same field, a frozen copy that looks the same, resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from renderers.fields.tet_mesh import TetMeshField
from studio.checkpoints import load_latest
from studio.config import load_scene, validate
from studio.configs import SceneConfig
from studio.edit_configs import check_edit
from studio.errors import ConfigError, ShapeError
from studio.guided_images import guided_images
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.scene_file import read_yaml
from studio.stages import load_stage
from tests.studio.conftest import start
from tests.studio.test_mesh_stages import MESH_STAGES
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

EDIT = ("stages.0.field={kind: previous}", "stages.0.steps=3", "prompt=a red cube")


@pytest.fixture(scope="module")
def source(tiny_scene, tmp_path_factory) -> RunFolder:
    """A finished run of a volume."""
    scene, run = start(tiny_scene, tmp_path_factory.mktemp("source"), "stages.0.steps=3")
    Runner(scene, run).optimise()
    return run


def edited(scene_file: Path, out: Path, source: RunFolder, *more: str):
    """A new run that starts from another."""
    return start(scene_file, out, *EDIT, f"edit={{run: {source.path}}}", *more)


def test_edit_begins_with_the_field_the_run_ended_with(tiny_scene, source, tmp_path):
    scene, run = edited(tiny_scene, tmp_path, source)
    runner = Runner(scene, run)
    expected = load_stage(source).field.state_dict()
    for name, value in runner.stage.field.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert scene.edit.source_prompt == "a red duck"
    assert scene.field_of(0) == load_stage(source).config.field_of(0)


BANDS = "stages.0.field.bands={start_levels: 1, start_fraction: 0.1, end_fraction: 1.0}"


def colours_of(runner: Runner) -> torch.Tensor:
    """The field at points of a box."""
    points = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    samples = runner.stage.field.query(points)
    return torch.cat([samples.sigma[:, None], samples.albedo], dim=1).detach()


def test_an_edit_keeps_the_levels_that_the_run_had_opened(tiny_scene, tmp_path):
    """Closing them again would change the scene, and a delta edit's zero would be none."""
    scene, run = start(tiny_scene, tmp_path / "source", BANDS, "stages.0.steps=4")
    first = Runner(scene, run)
    first.optimise()
    assert 0.0 < float(first.stage.field.level_mask.mean()) < 1.0
    expected, mask = colours_of(first), first.stage.field.level_mask.clone()
    second = Runner(*edited(tiny_scene, tmp_path / "edit", run))
    assert second.scene.field_of(0).bands is not None
    second.stage.open_levels(second.stage.renderer)
    assert torch.equal(colours_of(second), expected)
    copied = second.start.original.renderer.field
    assert torch.equal(copied.level_mask, mask), "the frozen copy is what the run ended with"
    second.step()
    assert torch.equal(second.stage.field.level_mask, mask)


def test_a_later_stage_keeps_the_levels_that_the_one_before_had_opened(tiny_scene, tmp_path):
    path = tmp_path / "two.yaml"
    text = tiny_scene.read_text(encoding="utf-8").replace("steps: 6", "steps: 3")
    more = """  - name: detail
    steps: 2
    field: {kind: previous}
    renderer: {samples_per_ray: 24, eval_samples_per_ray: 24, occupancy: {resolution: 12}}
    cameras: {batch_size: 2, height: 12, width: 12, distance_range: [2.6, 3.2]}
    guidance: {guidance_scale: 7.0}
export:"""
    path.write_text(text.replace("export:", more), encoding="utf-8")
    runner = Runner(*start(path, tmp_path / "runs", BANDS))
    for _ in range(3):
        assert runner.has_next()
        runner.step()
    expected, mask = colours_of(runner), runner.stage.field.level_mask.clone()
    assert runner.has_next()
    assert runner.stage.config.name == "detail"
    runner.stage.open_levels(runner.stage.renderer)
    assert torch.equal(colours_of(runner), expected)
    runner.step()
    assert torch.equal(runner.stage.field.level_mask, mask)


@pytest.mark.parametrize("guide_on", ["color", "normals"])
def test_frozen_copy_shows_what_the_edit_begins_with_bit_for_bit(
    guide_on, tiny_scene, source, tmp_path
):
    scene, run = edited(tiny_scene, tmp_path, source)
    runner = Runner(scene, run)
    stage, original = runner.stage, runner.start.original
    stage.renderer.occupancy.load_state_dict(load_stage(source).renderer.occupancy.state_dict())
    generator = torch.Generator().manual_seed(3)
    jitter = generator.clone_state()
    cameras = runner.preview_views
    output = stage.renderer.render(cameras, generator=generator, with_normals=True)
    original.see(output, guide_on, jitter=jitter)
    seen = original(cameras)
    assert torch.equal(seen, guided_images(output, guide_on))
    assert not seen.requires_grad
    for _ in range(3):
        runner.step()
    original.see(output, guide_on, jitter=jitter)
    assert torch.equal(original(cameras), seen), "the frozen copy moved"


def test_frozen_copy_stands_before_the_background_of_the_edit(tiny_scene, source, tmp_path):
    scene, run = edited(tiny_scene, tmp_path, source)
    runner = Runner(scene, run)
    cameras, original = runner.preview_views, runner.start.original
    with torch.no_grad():
        output = runner.stage.renderer.render(cameras)
    blue = torch.zeros_like(output.comp_rgb_bg) + torch.tensor([0.0, 0.0, 1.0])
    original.see(output)
    over_white = original(cameras)
    object.__setattr__(output, "comp_rgb_bg", blue)
    original.see(output)
    over_blue = original(cameras)
    with torch.no_grad():
        opacity = runner.start.renderer.render(cameras).opacity
    expected = (1.0 - opacity) * torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(over_white - over_blue, expected)


def test_original_wants_to_be_told_the_render_first(tiny_scene, source, tmp_path):
    scene, run = edited(tiny_scene, tmp_path, source)
    runner = Runner(scene, run)
    with pytest.raises(ShapeError, match="Tell it each render"):
        runner.start.original(runner.preview_views)


def test_edit_resumes_bit_for_bit_after_the_source_is_gone(tiny_scene, source, tmp_path):
    gone = RunFolder(shutil.copytree(source.path, tmp_path / "gone"))
    scene, whole = edited(tiny_scene, tmp_path / "whole", gone)
    expected = run_to_the_end(scene, whole)
    _, parts = edited(tiny_scene, tmp_path / "parts", gone)
    first = Runner(scene, parts)
    first.step()
    first.save()
    shutil.rmtree(gone.path)
    again = validate(SceneConfig, read_yaml(parts.resolved_path)[0])
    assert again == scene
    assert_equal_bits(expected, run_to_the_end(again, parts))
    assert load_stage(parts).step == 3
    assert not load_latest(parts.start_dir / "checkpoints", warn=print).optim


def test_edit_of_a_mesh_starts_with_the_mesh_and_a_volume_may_become_one(
    tiny_scene, source, tmp_path
):
    mesh_file = tmp_path / "mesh.yaml"
    text = tiny_scene.read_text(encoding="utf-8").replace("steps: 6", "steps: 2")
    mesh_file.write_text(text.replace("export:", MESH_STAGES), encoding="utf-8")
    scene, mesh_run = start(mesh_file, tmp_path / "mesh")
    Runner(scene, mesh_run).optimise()
    as_mesh = ("stages.0.renderer={kind: mesh}", "stages.0.losses={sparsity: 0.0}")
    scene, run = edited(tiny_scene, tmp_path / "edit", mesh_run, *as_mesh)
    runner = Runner(scene, run)
    assert isinstance(runner.stage.field, TetMeshField)
    assert scene.is_mesh(0)
    made, expected = (load.field.mesh().v_pos for load in (runner.stage, load_stage(mesh_run)))
    torch.testing.assert_close(made, expected, rtol=0, atol=0)
    runner.optimise()
    assert load_stage(run).step == 3
    with pytest.raises(ConfigError, match=r"does not fit the run .*expected \{kind: volume\}"):
        edited(tiny_scene, tmp_path / "wrong", source, *as_mesh)
    turn = ("stages.0.field={kind: grid_tets, resolution: 8}", *as_mesh)
    scene, run = edited(tiny_scene, tmp_path / "turned", source, *turn)
    runner = Runner(scene, run)
    runner.step()
    assert isinstance(runner.stage.field, TetMeshField)


def test_scene_that_starts_from_a_run_needs_its_field(tiny_scene, source, tmp_path):
    with pytest.raises(ConfigError, match=r"stages\.0\.field: expected \{kind: previous\}"):
        load_scene(tiny_scene, [f"edit={{run: {source.path}}}"])
    with pytest.raises(ConfigError, match="expected a field of its own, got previous"):
        load_scene(tiny_scene, ["stages.0.field={kind: previous}"])
    with pytest.raises(ConfigError, match="no such folder"):
        load_scene(tiny_scene, [*EDIT, f"edit={{run: {tmp_path / 'nothing'}}}"])
    with pytest.raises(ConfigError, match=r"edit\.run: is empty"):
        check_edit(load_scene(tiny_scene, [*EDIT, "edit={word: duck}"]).config.edit)


def test_run_that_is_not_finished_is_refused(tiny_scene, tmp_path):
    _, run = start(tiny_scene, tmp_path)
    with pytest.raises(ConfigError, match="is 'started' - expected a finished run"):
        load_scene(tiny_scene, [*EDIT, f"edit={{run: {run.path}}}"])
