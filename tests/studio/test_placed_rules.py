"""Scenes with a layout and edits by prompt, through the whole loop: they run, resume and refuse."""

from __future__ import annotations

import pytest
import torch

from renderers.box_configs import BoxesBlobConfig
from studio.config import dump_yaml, load_scene, validate
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.runner import Runner
from studio.scene_file import read_yaml
from studio.stages import load_stage
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

LAYOUT = (
    "prompt=a red duck left of a mushroom",
    "layout=[{prompt: a red duck, center: [0.0, -0.4, 0.0], size: [0.5, 0.5, 0.7]}, "
    "{prompt: a mushroom, center: [0.0, 0.4, 0.0], size: [0.5, 0.5, 0.7]}]",
    "stages.0.field.blob.kind=blob_boxes",
    "stages.0.steps=3",
)
RULES = {
    "regional_sds": "stages.0.guidance={kind: regional_sds, sds: {guidance_scale: 7.0}}",
    "layout_guided": "stages.0.guidance={kind: layout_guided, min_t: 0.0, close_ups: 0.5}",
}
RELATIONS = "view_prompts={kind: relations}"
EDIT = (
    "prompt=a red fox left of a mushroom",
    "stages.0.field={kind: previous}",
    "stages.0.steps=3",
    "stages.0.guidance={kind: delta_edit, mask: {kind: word, keep_word: mushroom}, keep: 2.0}",
)


def after_a_stop(scene, tmp_path, *arguments):
    """The last checkpoints of a run in one go and of one that was stopped."""
    _, whole = start(scene, tmp_path / "whole", *arguments)
    config, parts = start(scene, tmp_path / "parts", *arguments)
    expected = run_to_the_end(config, whole)
    first = Runner(config, parts)
    first.step()
    first.save()
    return expected, run_to_the_end(config, parts)


@pytest.mark.parametrize("kind", RULES)
def test_scene_with_a_layout_resumes_bit_for_bit(kind, tiny_scene, tmp_path):
    assert_equal_bits(*after_a_stop(tiny_scene, tmp_path, *LAYOUT, RULES[kind]))


@pytest.mark.parametrize("kind", RULES)
def test_scene_with_relations_by_view_resumes_bit_for_bit(kind, tiny_scene, tmp_path):
    assert_equal_bits(*after_a_stop(tiny_scene, tmp_path, *LAYOUT, RULES[kind], RELATIONS))


def test_prompt_edit_of_a_run_with_a_layout_resumes_bit_for_bit(tiny_scene, tmp_path):
    scene, source = start(tiny_scene, tmp_path / "source", *LAYOUT, RULES["regional_sds"])
    Runner(scene, source).optimise()
    edit = f"edit={{run: {source.path}, word: red duck}}"
    assert_equal_bits(*after_a_stop(tiny_scene, tmp_path, *EDIT, edit))
    config = load_scene(tiny_scene, [*EDIT, edit]).config
    assert config.edit.source_prompt == "a red duck left of a mushroom"
    assert len(config.field_of(0).blob.boxes) == 2, "the run's boxes, without its layout"


def test_density_starts_in_the_layout_s_boxes_and_export_finds_it_again(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path, *LAYOUT, RULES["regional_sds"])
    assert isinstance(scene.field_of(0).blob, BoxesBlobConfig)
    again = validate(SceneConfig, read_yaml(run.resolved_path)[0])
    assert again == scene
    assert dump_yaml(again) == dump_yaml(scene)
    runner = Runner(scene, run)
    runner.step()
    runner.save()
    x = torch.tensor([[0.0, -0.4, 0.0], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0], [0.8, 0.0, 0.8]])
    density = load_stage(run).field.density(x)
    torch.testing.assert_close(density, runner.stage.field.density(x))
    assert density[:2].min() > 3.0 > density[2:].max()


def test_plain_score_distillation_may_speak_of_relations(tiny_scene, tmp_path):
    scene, run = start(tiny_scene, tmp_path, *LAYOUT[:2], LAYOUT[3], RELATIONS)
    assert scene.stages[0].guidance.kind == "sds"
    Runner(scene, run).optimise()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LAYOUT[:2]], "layout: no stage reads it"),
        (["stages.0.field.blob.kind=blob_boxes"], "layout: is empty, and field.blob"),
        ([*LAYOUT, RULES["regional_sds"], "view_prompts.kind=perp_neg"], "no region"),
        (
            [*LAYOUT, RULES["layout_guided"], "debias={words: [red], model: bert}"],
            "follows the prompt's words",
        ),
        ([RELATIONS], "relations are those of the layout's objects, which has 0"),
        (
            [*LAYOUT, RELATIONS, "debias={words: [red], model: bert}"],
            "relations write each view's prompt themselves",
        ),
        (
            [*LAYOUT, RELATIONS, "stages.0.guidance={kind: multiview}"],
            r"stages\.0\.guidance: multiview has one prompt for all views",
        ),
        ([*LAYOUT, "layout.1.prompt= "], r"layout\.1\.prompt: is empty"),
        ([*LAYOUT, "layout.0.center=[0.0, -4.0, 0.0]"], "lies outside of the scene"),
        ([*LAYOUT, "layout.0.size=[0.0, 1.0, 1.0]"], "expected three lengths above 0"),
        (["stages.0.guidance.kind=delta_edit"], "edits a finished run - expected edit.run"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message, tiny_scene):
    with pytest.raises(ConfigError, match=message):
        load_scene(tiny_scene, arguments)
