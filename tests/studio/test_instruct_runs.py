"""Runs edited by an instruction: both forms start from the run, resume, and say what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.text_to_3d.budgets import scene_rows
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from image_tools.diffusion.loading import load_folder
from studio.config import load_scene
from studio.dataset_views import dataset_views
from studio.errors import ConfigError, WeightsMissing
from studio.run_folder import RunFolder
from studio.runner import Runner
from studio.scene_inputs import check_inputs
from studio.stages import load_stage
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.studio.conftest import start
from tests.studio.test_painted_stages import mesh_file, paint_scene
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

__all__ = ["mesh_file", "paint_scene"]

FORMS = {
    "sds": "{kind: instruct_sds, model: {weights: MODEL}, guidance_scale: 3}",
    "views": "{kind: dataset_update, model: {weights: MODEL}, count: 4, views_per_step: 2, "
    "every: 2, sampler: {steps: 3, guidance_scale: 3}}",
}
PRESETS = {
    "instruct-nerf2nerf": DatasetUpdateConfig,
    "instruct-sds": InstructSDSConfig,
    "pocket-instruct-nerf2nerf": DatasetUpdateConfig,
    "pocket-instruct-sds": InstructSDSConfig,
}


@pytest.fixture(scope="module")
def edit_model(tiny_prior, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ip2p")
    tiny_edit_unet(load_folder(tiny_prior, torch.device("cpu"))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tiny_scene, tmp_path_factory) -> RunFolder:
    """A finished run of a volume."""
    scene, run = start(tiny_scene, tmp_path_factory.mktemp("source"), "stages.0.steps=3")
    Runner(scene, run).optimise()
    return run


def edited(scene_file: Path, out: Path, run: RunFolder, form: str, model: Path, *more: str):
    """A new run that edits another."""
    return start(
        scene_file,
        out,
        "stages.0.field={kind: previous}",
        "stages.0.steps=5",
        "stages.0.background.kind=solid",
        f"stages.0.guidance={FORMS[form].replace('MODEL', str(model))}",
        f"edit={{run: {run.path}, instruction: make it blue}}",
        *more,
    )


@pytest.mark.parametrize("form", FORMS)
def test_an_edit_resumes_bit_for_bit(form, tiny_scene, source, edit_model, tmp_path):
    scene, whole = edited(tiny_scene, tmp_path / "whole", source, form, edit_model)
    expected = run_to_the_end(scene, whole)
    _, parts = edited(tiny_scene, tmp_path / "parts", source, form, edit_model)
    for stop in (1, 4):
        runner = Runner(scene, parts)
        while runner.steps_done < stop:
            assert runner.has_next()
            runner.step()
        runner.save()
    assert_equal_bits(expected, run_to_the_end(scene, parts))
    counted = parts.read_info()["denoiser_evaluations"]
    assert counted == whole.read_info()["denoiser_evaluations"] > 0
    if form == "sds":
        assert counted == scene_rows(scene) == 3 * 2 * 5


@pytest.mark.parametrize("form", FORMS)
def test_an_edit_of_a_part_shows_and_compares_that_part_alone(
    form, tiny_scene, source, edit_model, tmp_path
):
    box = "edit.box={center: [0.1, 0.0, 0.0], size: [0.4, 0.2, 0.6]}"
    scene, run = edited(tiny_scene, tmp_path, source, form, edit_model, box)
    runner, seen = Runner(scene, run), []
    look, views = runner.guidance.look, runner.start.original

    def note(output, cameras):
        seen.append((cameras, output.opacity))
        look(output, cameras)

    runner.guidance.look = note
    first = runner.step()
    (cameras, opacity), limits = seen[0], torch.tensor([[-0.12, -0.11, -0.33], [0.32, 0.11, 0.33]])
    torch.testing.assert_close(cameras.within, limits.expand_as(cameras.within))
    assert views(cameras).shape[:3] == opacity.shape[:3]
    whole = Runner(*edited(tiny_scene, tmp_path / "whole", source, form, edit_model))
    assert first["samples"] < whole.step()["samples"]


def test_an_edit_of_a_part_keeps_what_is_outside_of_it(tiny_scene, source, edit_model, tmp_path):
    box = "edit.box={center: [0.1, 0.0, 0.0], size: [0.4, 0.2, 0.6]"
    x = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    outside = ((x - torch.tensor([0.1, 0.0, 0.0])).abs() > torch.tensor([0.2, 0.1, 0.3])).any(dim=1)
    before = load_stage(source).field
    change = {}
    for keep in (0.0, 1e6):
        out = tmp_path / str(keep)
        scene, run = edited(
            tiny_scene, out, source, "sds", edit_model, f"{box}}}", f"edit.keep={keep}"
        )
        runner = Runner(scene, run)
        assert runner.start.change_outside(runner.stage.renderer, 1) == 0.0, "nothing changed yet"
        row = runner.optimise()
        assert (row["loss_kept"] > 0.0) == (keep > 0.0)
        after = load_stage(run).field
        difference = (after.albedo(x) - before.albedo(x)).abs()
        change[keep] = difference[outside].mean()
    assert change[1e6] < 0.5 * change[0.0]


def test_a_part_that_holds_the_whole_scene_leaves_nothing_to_keep(
    tiny_scene, source, edit_model, tmp_path
):
    box = "edit.box={center: [0.0, 0.0, 0.0], size: [3.0, 3.0, 3.0]}"
    runner = Runner(*edited(tiny_scene, tmp_path, source, "sds", edit_model, box))
    assert runner.start.change_outside(runner.stage.renderer, 1) is None
    assert runner.step()["loss_kept"] == 0.0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("stages.0.renderer={kind: mesh}", "edit.box shows a part of the scene alone"),
        ("stages.0.guidance={kind: layout_multiview}", "and edit.box one part of the scene alone"),
        ("edit.keep=-1", r"edit\.keep is -1\.0 - expected 0 or more"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(
    more, message, tiny_scene, source, edit_model, tmp_path
):
    box = "edit.box={center: [0.0, 0.0, 0.0], size: [0.4, 0.4, 0.4]}"
    with pytest.raises(ConfigError, match=message):
        edited(tiny_scene, tmp_path, source, "sds", edit_model, box, more)


@pytest.mark.parametrize("form", FORMS)
def test_the_instruction_is_what_the_model_reads(form, tiny_scene, source, edit_model, tmp_path):
    scene, run = edited(tiny_scene, tmp_path, source, form, edit_model)
    runner = Runner(scene, run)
    rule = runner.guidance if form == "views" else runner.guidance.rule
    assert rule.prompts.prompt == "make it blue"
    expected = runner.prior.encode_prompt(["make it blue"]).tokens
    assert torch.equal(rule.prompts.text.tokens, expected)


def test_a_dataset_begins_with_the_runs_own_views(tiny_scene, source, edit_model, tmp_path):
    scene, run = edited(tiny_scene, tmp_path, source, "views", edit_model)
    runner = Runner(scene, run)
    runner.has_next()
    first = runner.step()
    assert first["loss_guidance"] < 0.05, "at first the scene is what it is compared with"
    assert first["edited_views"] == 0.5
    rule = runner.guidance
    rows = [k for k in range(4) if rule.rounds[k] == 1]
    with torch.no_grad():
        original = load_stage(source).renderer.render(rule.cameras[rows])
    torch.testing.assert_close(rule.originals[rows], original.comp_rgb, rtol=0, atol=0.1)
    assert not torch.equal(rule.images[rows], rule.originals[rows])


def test_dataset_views_stand_around_the_object_at_the_stages_distance(tiny_scene):
    cameras = load_scene(tiny_scene).config.stages[0].cameras
    config = load_scene("pocket-instruct-nerf2nerf").config.stages[0].guidance
    views = dataset_views(config, cameras)
    assert (len(views), views.height) == (config.count, cameras.height)
    torch.testing.assert_close(views.azimuth_deg.diff(), torch.full((15,), 22.5))
    assert views.elevation_deg[:4].tolist() == [15.0, 0.0, 30.0, 15.0]
    assert float(views.camera_distance[0]) == pytest.approx(2.9)


def test_a_painted_mesh_is_edited_too(paint_scene, edit_model, tmp_path):
    scene, run = start(paint_scene, tmp_path / "source", "stages.0.steps=2")
    Runner(scene, run).optimise()
    override = ("stages.0.geometry=fixed", "stages.0.renderer.kind=mesh")
    scene, again = edited(paint_scene, tmp_path / "edit", run, "sds", edit_model, *override)
    runner = Runner(scene, again)
    faces = load_stage(run).field.mesh()
    runner.optimise()
    mesh = load_stage(again).field.mesh()
    assert torch.equal(mesh.v_pos, faces.v_pos)
    assert torch.equal(mesh.t_pos_idx, faces.t_pos_idx)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_forms_to_fill_in(name):
    scene = load_scene(name).config
    (stage,) = scene.stages
    assert isinstance(stage.guidance, PRESETS[name])
    assert (stage.field.kind, scene.edit.run, scene.edit.instruction) == (
        "previous",
        "",
        "make it blue",
    )
    assert stage.guidance.model.image_scale == 1.5


def test_what_is_missing_is_one_clear_error(tiny_scene, source, edit_model, tmp_path):
    scene, _ = edited(tiny_scene, tmp_path / "a", source, "sds", edit_model, "edit.instruction=")
    with pytest.raises(ConfigError, match=r"edit\.instruction: is empty"):
        check_inputs(scene)
    scene, _ = edited(tiny_scene, tmp_path / "b", source, "sds", Path("pocket-ip2p-of-nobody"))
    with pytest.raises(WeightsMissing, match=r"did you mean pocket-ip2p\? Of this package"):
        check_inputs(scene)


def test_a_dataset_wants_one_background(tiny_scene, source, edit_model, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset_update compares with views that it keeps"):
        edited(tiny_scene, tmp_path, source, "views", edit_model, "stages.0.background.kind=random")


def test_a_dataset_has_nothing_to_read_back(tiny_scene, source, edit_model, tmp_path):
    with pytest.raises(ConfigError, match=r"dataset_update encodes no render"):
        edited(tiny_scene, tmp_path, source, "views", edit_model, "stages.0.losses.autoencoder=1")
