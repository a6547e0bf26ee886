"""Scene files of tasks that make pictures: presets, what is refused, what the command knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from studio.commands import explain, new
from studio.config import dump_yaml, json_schema, load_scene, load_task
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.images.configs import ControlImageConfig, EditImageConfig, RegionalImageConfig
from studio.scene_file import preset_names
from studio.task_configs import TaskConfig

PRESETS = {
    "text-to-image": ("text_to_image", "prompt"),
    "edit-prompt-to-prompt": ("edit_image", "prompt_to_prompt"),
    "edit-null-text": ("edit_image", "null_text"),
    "edit-dds": ("edit_image", "dds"),
    "edit-instruct": ("edit_image", "instruct_pix2pix"),
    "edit-self-guidance": ("edit_image", "self_guidance"),
    "control-edges": ("control_image", "controlnet"),
    "control-uni": ("control_image", "uni_controlnet"),
    "regional-rule": ("regional_image", "rule regions"),
    "style-aligned": ("reference_image", "style_aligned"),
    "reference-ip-adapter": ("reference_image", "ip_adapter"),
    "reference-instant-id": ("reference_image", "instant_id"),
    "reference-kosmos-g": ("reference_image", "kosmos_g"),
    "reference-ms-diffusion": ("reference_image", "ms_diffusion"),
    "reference-photomaker": ("reference_image", "photomaker"),
    "tryon-idm": ("try_on", "idm_vton"),
    "tryon-bootcomp": ("try_on", "bootcomp"),
    "tryon-cat": ("try_on", "cat_vton"),
    "tryon-ladi": ("try_on", "ladi_vton"),
    "tryon-stable-viton": ("try_on", "stable_viton"),
}
EDIT = {"kind": "prompt_to_prompt", "edits": [{"prompt": "a blue duck"}]}
LAYOUT = {"kind": "explicit", "ratio": "1,1", "regions": [{"prompt": "a"}, {"prompt": "b"}]}


def load(folder: Path, **settings) -> object:
    """The config of a scene file with these settings."""
    path = folder / "scene.yaml"
    path.write_text(yaml.safe_dump({"prompt": "a red duck"} | settings), encoding="utf-8")
    return load_task(path).config


@pytest.mark.parametrize(("name", "expected"), PRESETS.items())
def test_there_is_a_preset_for_every_method(name, expected, tmp_path):
    config = load_task(name).config
    assert (config.task, config.means) == expected
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_task(path).config == config


def test_new_lists_and_prints_them(capsys):
    new.run(None, as_json=True)
    about = json.loads(capsys.readouterr().out)
    assert set(PRESETS) <= set(about) == set(preset_names())
    assert "Prompt-to-Prompt" in about["edit-prompt-to-prompt"]
    new.run("regional-rule")
    assert yaml.safe_load(capsys.readouterr().out)["task"] == "regional_image"


def test_explain_says_which_tasks_have_a_key(capsys):
    (words,) = explain.find("word_maps")
    first = ("text_to_image", "edit_image", "control_image", "regional_image")
    assert words.tasks[:4] == first
    assert {entry.tasks for entry in explain.find("method")} == {
        ("edit_image",),
        ("control_image",),
        ("try_on",),
        ("personalize",),
    }
    explain.run("method.edits.0.cross_steps")
    text = capsys.readouterr().out
    assert "cross_steps  [task edit_image]" in text
    assert "words look where the source's words look" in text
    explain.run("stages.guidance")
    assert "[task" not in capsys.readouterr().out


def test_the_schema_tells_tasks_apart():
    schema = json_schema(TaskConfig)
    assert set(schema["discriminator"]["mapping"]) == {
        *("text_to_3d", "dreambooth3d", "edit_image", "control_image", "regional_image"),
        *("reference_image", "text_to_image", "try_on"),
    }
    assert schema["$defs"]["EditImageConfig"]["additionalProperties"] is False


def test_a_scene_of_pictures_is_no_scene_of_an_asset():
    with pytest.raises(ConfigError, match="task edit_image makes pictures - expected a scene that"):
        load_scene("edit-dds")
    assert isinstance(load_task("demo").config, SceneConfig)


def test_the_task_decides_what_a_file_may_hold(tmp_path):
    classes = {
        EditImageConfig: {"task": "edit_image", "method": EDIT},
        RegionalImageConfig: {"task": "regional_image", "regions": LAYOUT},
    }
    for cls, settings in classes.items():
        assert type(load(tmp_path, **settings)) is cls
    net = {"weights": "x", "condition": {"kind": "canny", "path": "photo.png"}}
    method = {"kind": "controlnet", "nets": [net]}
    assert isinstance(load(tmp_path, task="control_image", method=method), ControlImageConfig)
    with pytest.raises(ConfigError, match="stages: unknown key"):
        load(tmp_path, task="edit_image", method=EDIT, stages=[])
    with pytest.raises(ConfigError, match=r"task: unknown 'edit_imag'\. Did you mean 'edit_image'"):
        load(tmp_path, task="edit_imag")


def test_prompts_of_a_run_are_those_of_its_pictures(tmp_path):
    assert load(tmp_path, task="edit_image", method=EDIT).prompts == ("a red duck", "a blue duck")
    method = {"kind": "dds", "prompts": ["x", "y"]}
    assert load(tmp_path, task="edit_image", method=method).prompts == ("a red duck", "x", "y")
    both = load(tmp_path, task="text_to_image", more_prompts=["x"])
    assert both.prompts == ("a red duck", "x")
    with pytest.raises(ConfigError, match=r"more_prompts\.0: "):
        load(tmp_path, task="text_to_image", more_prompts=[""])
    method = {"kind": "instruct_pix2pix", "instructions": ["make it blue"]}
    assert load(tmp_path, task="edit_image", method=method).prompts == ("a red duck",)


def test_an_instruction_may_count_less_than_the_picture(tmp_path):
    method = {"kind": "instruct_pix2pix", "instructions": ["make it blue"]}
    config = load(tmp_path, task="edit_image", method=method, sampler={"guidance_scale": 0.5})
    assert config.sampler.guidance_scale == 0.5


REFUSED = {
    "no edit": ({"method": EDIT | {"edits": []}}, "method.edits is empty - expected at least one"),
    "empty instruction": (
        {"method": {"kind": "instruct_pix2pix", "instructions": [" "]}},
        "method.instructions is empty",
    ),
    "unknown method": ({"method": {"kind": "p2p"}}, "method.kind: unknown 'p2p'. Known kinds: "),
    "two masks": (
        {"method": EDIT | {"mask": "m.png", "blend": {"words": [["red"], ["blue"]]}}},
        "mask and blend both say where edits may act - expected one of them",
    ),
    "words of another edit": (
        {"method": EDIT | {"blend": {"words": [["red"]]}}},
        "words of the blend has 1 entries for 2 prompts",
    ),
    "a picture for drawn edits": (
        {"method": EDIT, "image": "x.png"},
        "image: is given, and prompt_to_prompt edits what the prior draws - expected method.kind",
    ),
    "seeds without noise": (
        {"method": EDIT | {"kind": "null_text"}, "image": "x.png", "count": 3},
        "count: is 3, and null_text makes the same of a picture for every seed - expected count=1",
    ),
    "noise in inversion": (
        {"method": EDIT | {"kind": "null_text"}, "sampler": {"eta": 1.0}},
        "sampler.eta: is 1.0 - expected 0 for null_text",
    ),
    "no pictures": ({"method": EDIT, "count": 0}, "count: is 0 - expected at least 1 picture"),
    "guidance of Turbo models elsewhere": (
        {"method": EDIT, "sampler": {"guidance_scale": 0.0}},
        "sampler.guidance_scale: is 0, which leaves the prompt out or leads away from it - "
        "expected at least 1, and 1 for Turbo models",
    ),
    "no prompt": ({"method": EDIT, "prompt": " "}, "prompt: is empty"),
    "views": (
        {"method": EDIT, "prior": {"kind": "pocket_mv"}},
        "prior.kind: unknown 'pocket_mv'. Did you mean 'pocket'?",
    ),
}


@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_refused(settings, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, task="edit_image", **settings)
    assert words in str(caught.value)


LAYOUTS = {
    "letters": ({"ratio": "1,x"}, "regions.ratio '1,x' has 'x' - expected numbers above 0. Rows"),
    "nothing": ({"ratio": "1,;2"}, "has nothing between separators"),
    "too few prompts": (
        {"ratio": "1,1,1"},
        "ratio '1,1,1' makes 3 regions and there are 2 prompts - expected a prompt for each",
    ),
    "masks": ({"masks": ["a.png"]}, "masks has 1 entries for 2 regions - expected one for each"),
    "share": ({"base_ratio": 2.0}, "base_ratio is 2.0 - expected 0 to 1, a share"),
    "planner": ({"kind": "llm"}, "regions.kind: unknown 'llm'"),
}


@pytest.mark.parametrize(("settings", "words"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_that_cannot_be_read_are_refused(settings, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, task="regional_image", regions=LAYOUT | settings)
    assert words in str(caught.value)
