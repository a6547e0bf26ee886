"""What a user can get wrong about pictures: one clear line and its exit code, from the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from image_tools.configs import PocketPriorConfig, PriorMemoryConfig
from image_tools.diffusion.loading import load_prior
from image_tools.editing.editing_configs import EditedPromptConfig
from image_tools.errors import UnsupportedModel
from studio.images.configs import EditImageConfig
from studio.images.edits import make_editor
from studio.images.method_configs import NullTextMethodConfig
from tests.image_tools.control.test_planners import Server
from tests.image_tools.control.tiny_controls import tiny_controlnet
from tests.studio.images.conftest import SIZE, write_picture

SWAP = {"prompt": "a purple duck", "align": "replace"}
EDIT = {"task": "edit_image", "method": {"kind": "prompt_to_prompt", "edits": [SWAP]}}
DDS = {"task": "edit_image", "method": {"kind": "dds", "prompts": ["x"], "descent": {"updates": 1}}}
RULE = {"task": "regional_image", "regions": {"kind": "rule"}}


def method(**changes) -> dict:
    """The edit with other settings of its method."""
    return EDIT | {"method": EDIT["method"] | changes}


WORDS = {
    "weight of an absent word": (
        method(edits=[SWAP | {"word_weights": [{"word": "cat"}]}]),
        "'cat' is not in the prompt 'a purple duck' - expected one of its words",
    ),
    "blend of an absent word": (
        method(blend={"words": [["dock"], ["duck"]], "level": 0}),
        "'dock' is not in the prompt 'a red duck' - expected one of its words, or its number. Did "
        "you mean 'duck'?",
    ),
    "swap of other lengths": (
        method(edits=[SWAP | {"prompt": "a very purple duck"}]),
        "'a red duck' has 3 words and 'a very purple duck' 4 - expected as many, to replace word",
    ),
    "inverted edits": (
        method(kind="null_text", edits=[SWAP | {"prompt": "a very purple duck"}]),
        "has 3 words and 'a very purple duck' 4",
    ),
    "blend where no text is seen": (
        method(blend={"words": [["red"], ["purple"]], "level": 7}),
        "level of the blend is 7, where this denoiser sees no text - expected one of",
    ),
    "guidance of an absent word": (
        method(kind="self_guidance", edits=[{"kind": "resize", "words": ["cat"], "scale": 2.0}]),
        "'cat' is not in the prompt 'a red duck'",
    ),
    "map of an absent word": (
        EDIT | {"word_maps": ["duck", "cat"]},
        "'cat' is not in the prompt 'a red duck'",
    ),
    "no relation": (RULE, "The prompt 'a red duck' states no relation between things"),
    "no plan": (
        RULE | {"regions": {"kind": "file", "path": "plan.yaml"}},
        "The plan 'plan.yaml' cannot be read",
    ),
}


@pytest.mark.parametrize(("settings", "words"), WORDS.values(), ids=WORDS.keys())
def test_words_and_plans_that_do_not_fit(settings, words, studio, scene):
    done = studio("run", scene(**settings))
    assert words in done.error
    assert (done.code, done.out) == (2, "")
    (info,) = Path("runs").glob("*/*/run.json")
    assert json.loads(info.read_text())["status"] == "failed"


def test_a_layout_error_comes_before_anything_is_made(studio, scene):
    layout = {"kind": "explicit", "ratio": "1;,2", "regions": [{"prompt": "a"}]}
    done = studio("run", scene(task="regional_image", regions=layout))
    assert done.code == 2
    assert "regions.ratio '1;,2' has nothing between separators - expected numbers" in done.error
    assert not Path("runs").exists()


def test_a_planner_that_is_down(studio, scene):
    planner = {"kind": "endpoint", "url": "http://127.0.0.1:9/v1", "model": "m", "timeout_s": 2.0}
    done = studio("run", scene(task="regional_image", regions=planner))
    assert done.code == 2
    assert "The planner 'http://127.0.0.1:9/v1/chat/completions' cannot be reached" in done.error


NONSENSE = {
    "chatter": "I am sorry, I cannot help with that.",
    "no json": b"<html>busy</html>",
    "too many regions": "Final split ratio: 1,1,1\nRegional Prompt: a BREAK b",
    "an error": 500,
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE.keys())
def test_a_planner_that_answers_nonsense(answer, studio, scene):
    with Server(answer) as server:
        planner = {"kind": "endpoint", "url": server.url, "model": "m", "attempts": 2}
        done = studio("run", scene(task="regional_image", regions=planner))
    assert done.code == 2
    words = "status 500" if answer == 500 else "gave no plan in 2 answers"
    assert words in done.error


def broken(path: Path) -> str:
    """A picture whose second half is lost."""
    write_picture(path, size=(200, 200))
    path.write_bytes(path.read_bytes()[:2000])
    return str(path)


def test_pictures_that_cannot_be_read(studio, scene, tmp_path):
    (tmp_path / "note.png").write_text("no picture")
    cases = {
        "nowhere.png": "The image 'nowhere.png' cannot be opened (No such file or directory)",
        "note.png": "The image 'note.png' is no image, or damaged at its very start",
        broken(tmp_path / "broken.png"): "is damaged (",
    }
    for image, words in cases.items():
        done = studio("run", scene(**DDS, image=image))
        assert done.error.startswith("image: The image"), done.error
        assert words in done.error
        assert done.code == 2
    done = studio("run", scene(**method(mask="note.png")))
    assert done.error.startswith("method.mask: The image 'note.png' is no image")
    assert not Path("runs").exists()


def test_masks_of_another_shape(studio, scene, tmp_path):
    Image.new("L", (SIZE, SIZE + 8)).save(tmp_path / "tall.png")
    done = studio("run", scene(**method(mask="tall.png")))
    assert done.code == 2
    words = f"'tall.png' is {SIZE}x{SIZE + 8} pixels - expected {SIZE}x{SIZE}"
    assert f"method.mask: {words}" in done.error
    layout = {"kind": "explicit", "ratio": "1", "regions": [{"prompt": "a"}], "masks": ["tall.png"]}
    done = studio("run", scene(task="regional_image", regions=layout))
    assert f"regions.masks.0: {words}" in done.error


def test_a_condition_of_another_size(studio, scene, prior, tmp_path):
    tiny_controlnet(prior).save_pretrained(tmp_path / "net")
    small = write_picture(tmp_path / "small.png", size=(16, 16))
    net = {"weights": "net", "condition": {"kind": "image", "path": small}}
    settings = {"task": "control_image", "method": {"kind": "controlnet", "nets": [net]}}
    done = studio("run", scene(**settings))
    assert done.code == 2
    key = "method.nets.0.condition"
    assert f"{key}.path: '{small}' is 16x16 pixels - expected {SIZE}x{SIZE}, the size" in done.error
    assert f"or set {key}.fit=crop" in done.error
    assert studio("run", scene(**settings), f"{key}.fit=crop").code == 0


def test_weights_that_are_not_there(studio, scene, tmp_path):
    photo = write_picture(tmp_path / "photo.png")
    condition = {"kind": "canny", "path": photo}
    instruct = {"kind": "instruct_pix2pix", "instructions": ["x"], "model": "pocket-nothing"}
    uni = {"kind": "uni_controlnet", "maps": [{"name": "edge", "condition": condition}]}
    cases = {
        "Weights for the method.model are missing: 'pocket-nothing' is not there": (
            EDIT | {"method": instruct}
        ),
        "Weights for the method.nets.0.weights are missing: 'models/canny' is not there": {
            "task": "control_image",
            "method": {
                "kind": "controlnet",
                "nets": [{"weights": "models/canny", "condition": condition}],
            },
        },
        "Weights for the method.model are missing: 'pocket-other' is not there": {
            "task": "control_image",
            "method": uni | {"model": "pocket-other"},
        },
    }
    for words, settings in cases.items():
        done = studio("run", scene(**settings))
        assert words in done.error
        assert done.code == 3
        found = studio("doctor", scene(**settings))
        assert found.code == 3
        assert words.split(" - ")[0] in found.out
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_written(studio, scene, tmp_path):
    (tmp_path / "taken").write_text("a file")
    done = studio("run", scene(**EDIT), "--out", "taken")
    assert done.code == 2
    assert done.error.startswith("Cannot create a run folder in taken: ")


def test_options_and_verbs_of_assets(studio, scene):
    path = scene(**EDIT)
    for option in ("--eval", "--view"):
        done = studio("run", path, option)
        assert done.code == 2
        assert f"{option}: is for runs that make an asset, and task edit_image makes" in done.error
    assert "task edit_image makes pictures" in studio("sweep", path, "seed=1,2").error
    assert studio("run", path, "--out", "runs").code == 0
    (run,) = (info.parent for info in Path("runs").glob("*/*/run.json"))
    done = studio("run", "--resume", str(run))
    assert "made pictures, which are not continued" in done.error
    for verb in ("export", "render", "eval"):
        assert studio(verb, str(run)).code == 2


def test_half_precision_is_refused_before_anything_is_drawn(tiny_prior):
    memory = PriorMemoryConfig(dtype="bfloat16")
    prior = load_prior(PocketPriorConfig(path=str(tiny_prior), memory=memory), torch.device("cpu"))
    inverted = NullTextMethodConfig((EditedPromptConfig("a purple duck"),))
    config = EditImageConfig(prompt="a red duck", method=inverted)
    with pytest.raises(UnsupportedModel, match=r"computes in bfloat16, .*memory.dtype"):
        make_editor(prior, config)
    make_editor(prior, replace(config, method=replace(inverted, inversion="negative_prompt")))
