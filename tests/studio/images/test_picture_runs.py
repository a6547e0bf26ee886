"""Runs that make pictures, by the command: files, sheets, records, and tools that do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from image_tools.configs import PocketPriorConfig
from image_tools.control.uni_weights import write_uni
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.lora_files import write_lora
from studio.images.heat import overlay
from studio.images.regions import plan_picture
from tests.image_tools.control.tiny_controls import (
    tiny_controlnet,
    tiny_global_adapter,
    tiny_local_adapter,
)
from tests.image_tools.editing.tiny_editors import tiny_edit_unet
from tests.image_tools.random_loras import random_lora
from tests.studio.images.conftest import SIZE, read, write_picture

SWAP = {"prompt": "a purple duck", "align": "replace"}
NOTHING = {"align": "refine", "cross_steps": [0.0, 0.0], "self_steps": [0.0, 0.0]}
SMALL = {"inner_steps": 1}


def run_of(done) -> Path:
    """The folder of a run that ended well."""
    assert done.code == 0, done.err
    return Path(done.result["run"])


def make(studio, scene, *overrides: str, **settings) -> Path:
    """Run a scene with these settings."""
    return run_of(studio("run", scene(**settings), *overrides, "--out", "runs", "--json"))


EDITS = {
    "prompt_to_prompt": ({"edits": [SWAP]}, ["source", "edit1"]),
    "null_text": ({"edits": [SWAP], "learning": SMALL}, ["source", "inverted", "edit1"]),
    "dds": (
        {"prompts": ["a mushroom", "x"], "descent": {"updates": 2}},
        ["source", "edit1", "edit2"],
    ),
    "self_guidance": (
        {"edits": [{"kind": "move", "words": ["duck"], "shift": [0.2, 0.0]}]},
        ["source", "edit1"],
    ),
}


@pytest.mark.parametrize(("kind", "given"), EDITS.items())
@pytest.mark.parametrize("is_own", [False, True], ids=["drawn", "own picture"])
def test_every_edit_ends_in_files(kind, given, is_own, studio, scene, tmp_path):
    settings, names = given
    image = {}
    if is_own:
        if kind == "prompt_to_prompt":
            return  # which edits what the prior draws
        image = {"image": write_picture(tmp_path / "photo.png", size=(50, 40))}
    run = make(studio, scene, task="edit_image", method={"kind": kind, **settings}, **image)
    assert sorted(path.stem for path in (run / "images").iterdir()) == sorted(
        f"{name}-s0" for name in names
    )
    folders = [path.name for path in run.iterdir() if path.is_dir()]
    assert folders == ["images"]
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["task"], info["seed"]) == ("done", "edit_image", 0)
    assert info["files"]["sheet"] == "sheet.png"
    assert yaml.safe_load((run / "resolved.yaml").read_text())["method"]["kind"] == kind
    page = (run / "report.html").read_text()
    assert "All pictures, by seed" in page
    assert "No asset" not in page
    pictures = json.loads((run / "results.json").read_text())["pictures"]
    assert [one["name"] for one in pictures] == names
    assert pictures[0]["difference"] == 0.0
    assert pictures[-1]["difference"] > 0.0
    index = json.loads((run.parents[1] / "index.jsonl").read_text().splitlines()[-1])
    assert (index["status"], index["prompt"]) == ("done", "a red duck")


def test_seeds_are_rows_and_pictures_tell_how_they_were_made(studio, scene):
    method = {"kind": "prompt_to_prompt", "edits": [SWAP]}
    run = make(studio, scene, task="edit_image", method=method, count=2, seed=5)
    names = {path.name for path in (run / "images").iterdir()}
    assert names == {"source-s5.png", "edit1-s5.png", "source-s6.png", "edit1-s6.png"}
    assert not np.array_equal(read(run, "source-s5"), read(run, "source-s6"))
    with Image.open(run / "images" / "edit1-s6.png") as image:
        told = json.loads(image.text["studio"])
    assert (told["prompt"], told["seed"], told["method"]) == (
        "a purple duck",
        6,
        "prompt_to_prompt",
    )
    with Image.open(run / "sheet.png") as sheet:
        assert sheet.width > 2 * 192
        assert sheet.height > 2 * 192
    alone = make(studio, scene, "seed=6", task="edit_image", method=method)
    assert np.array_equal(read(alone, "edit1-s6"), read(run, "edit1-s6"))


def test_a_run_is_repeated_from_its_own_record(studio, scene):
    method = {"kind": "dds", "prompts": ["a mushroom"], "descent": {"updates": 2}}
    first = make(studio, scene, task="edit_image", method=method)
    done = studio("run", str(first / "resolved.yaml"), "--out", "runs", "--json")
    again = run_of(done)
    assert again != first
    assert np.array_equal(read(first, "edit1-s0"), read(again, "edit1-s0"))


IDLE = {
    "no shared step": {"kind": "prompt_to_prompt", "edits": [{"prompt": "a red duck", **NOTHING}]},
    "the same prompt": {"kind": "dds", "prompts": ["a red duck"], "descent": {"updates": 2}},
    "no guidance": {
        "kind": "self_guidance",
        "edits": [{"kind": "move", "words": ["duck"], "shift": [0.2, 0.0]}],
        "guidance": {"scale": 0.0},
    },
}


@pytest.mark.parametrize("method", IDLE.values(), ids=IDLE.keys())
def test_an_edit_of_nothing_leaves_the_picture(method, studio, scene):
    run = make(studio, scene, task="edit_image", method=method)
    difference = np.abs(read(run, "source-s0").astype(int) - read(run, "edit1-s0"))
    assert difference.max() <= 1


def test_a_mask_keeps_what_is_black(studio, scene, tmp_path):
    black = np.zeros((SIZE, SIZE), np.uint8)
    Image.fromarray(black).save(tmp_path / "none.png")
    Image.fromarray(255 - black).save(tmp_path / "all.png")
    edited = {}
    for mask in (None, "all.png", "none.png"):
        method = {"kind": "prompt_to_prompt", "edits": [SWAP], "mask": mask}
        run = make(studio, scene, task="edit_image", method=method)
        edited[mask] = read(run, "edit1-s0")
        source = read(run, "source-s0")
    assert np.array_equal(edited[None], edited["all.png"])
    assert np.abs(edited["none.png"].astype(int) - source).max() <= 1
    assert not np.array_equal(edited[None], source)


def test_an_instruction_is_followed_by_a_model_of_ones_own(studio, scene, prior, tmp_path):
    tiny_edit_unet(prior).save_pretrained(tmp_path / "ip2p")
    method = {"kind": "instruct_pix2pix", "model": "ip2p", "instructions": ["make it purple"]}
    image = write_picture(tmp_path / "photo.png")
    run = make(studio, scene, task="edit_image", method=method, image=image)
    row = json.loads((run / "results.json").read_text())["pictures"][-1]
    assert (row["caption"], row["prompt"]) == ("make it purple", None)
    assert row["difference"] > 0.0
    found = studio("doctor", scene(task="edit_image", method=method))
    assert "adapter, 1 files" in found.out


def test_a_control_acts_by_its_strength(studio, scene, prior, tmp_path):
    tiny_controlnet(prior).save_pretrained(tmp_path / "net")
    condition = {"kind": "canny", "path": write_picture(tmp_path / "photo.png", size=(60, 50))}
    net = {"weights": "net", "condition": condition, "window": {"kind": "steps", "end": 0.7}}
    method = {"kind": "controlnet", "nets": [net]}
    run = make(studio, scene, task="control_image", method=method)
    assert set(np.unique(read(run, "condition1"))) <= {0, 255}
    assert not np.array_equal(read(run, "plain-s0"), read(run, "controlled-s0"))
    off = make(studio, scene, "method.nets.0.strength=0", task="control_image", method=method)
    assert np.array_equal(read(off, "plain-s0"), read(off, "controlled-s0"))


def test_any_of_an_adapters_conditions_may_be_given(studio, scene, prior, tmp_path):
    (tmp_path / "uni").mkdir()
    write_uni(tmp_path / "uni" / "uni.safetensors", tiny_local_adapter(prior), None)
    depth = {"kind": "image", "path": write_picture(tmp_path / "depth.png")}
    method = {
        "kind": "uni_controlnet",
        "model": "uni",
        "maps": [{"name": "depth", "condition": depth}],
    }
    run = make(studio, scene, task="control_image", method=method)
    assert not np.array_equal(read(run, "plain-s0"), read(run, "controlled-s0"))
    rows = json.loads((run / "results.json").read_text())["pictures"]
    assert [row["difference"] is None for row in rows] == [False, True, False]


def test_the_look_of_a_picture_is_copied_by_what_its_adapter_reads(studio, scene, prior, tmp_path):
    """Of pocket's adapter colours; of the authors' what a CLIP vision model sees."""
    width = prior.unet.config.cross_attention_dim
    tiny_clip(width).save_pretrained(tmp_path / "clip")
    write_uni(tmp_path / "uni.safetensors", None, tiny_global_adapter(prior))
    content = {"path": write_picture(tmp_path / "photo.png"), "encoder": "clip"}
    method = {"kind": "uni_controlnet", "model": "uni.safetensors", "content": content}
    run = make(studio, scene, task="control_image", method=method)
    assert (run / "images" / "content.png").is_file()
    assert not np.array_equal(read(run, "plain-s0"), read(run, "controlled-s0"))
    other = content | {"path": write_picture(tmp_path / "other.png", seed=1)}
    there = make(studio, scene, task="control_image", method=method | {"content": other})
    assert not np.array_equal(read(there, "controlled-s0"), read(run, "controlled-s0"))
    off = make(studio, scene, "method.content.strength=0", task="control_image", method=method)
    assert np.array_equal(read(off, "plain-s0"), read(off, "controlled-s0"))
    done = studio("run", scene(task="control_image", method=method), "method.content.encoder=null")
    assert done.code == 2
    assert f"makes 384 numbers of a picture, the adapter reads {width} - expected" in done.error
    maps = [{"name": "edge", "condition": {"kind": "canny", "path": content["path"]}}]
    done = studio("run", scene(task="control_image", method=method | {"maps": maps}))
    assert done.code == 3
    assert "holds no adapter for maps - expected one" in done.error


def tiny_clip(width: int):
    """A CLIP vision model with random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = CLIPVisionConfig(
        **sizes, num_hidden_layers=1, image_size=32, patch_size=8, projection_dim=width
    )
    return CLIPVisionModelWithProjection(config)


def test_a_plan_is_kept_and_can_be_used_again(studio, scene):
    settings = {"task": "regional_image", "prompt": "a red duck left of a purple mushroom"}
    run = make(studio, scene, regions={"kind": "rule"}, **settings)
    plan = yaml.safe_load((run / "plan.yaml").read_text())
    assert plan["ratio"] == "1,1"
    assert [one["prompt"] for one in plan["regions"]] == ["a red duck", "a purple mushroom"]
    assert not np.array_equal(read(run, "plain-s0"), read(run, "regional-s0"))
    again = make(
        studio, scene, regions={"kind": "file", "path": str(run / "plan.yaml")}, **settings
    )
    assert np.array_equal(read(run, "regional-s0"), read(again, "regional-s0"))
    plain = make(studio, scene, regions={"kind": "rule", "base_ratio": 1.0}, **settings)
    assert np.array_equal(read(plain, "plain-s0"), read(plain, "regional-s0"))


def test_masks_take_the_place_of_rectangles(studio, scene, tmp_path):
    left = np.zeros((SIZE, SIZE), np.uint8)
    left[:, : SIZE // 2] = 255
    Image.fromarray(left).save(tmp_path / "left.png")
    Image.fromarray(255 - left).save(tmp_path / "right.png")
    regions = [{"prompt": "a red duck"}, {"prompt": "a mushroom"}]
    layout = {"kind": "explicit", "ratio": "1,1", "regions": regions}
    sides = ["left.png", "right.png"]
    runs = [
        make(studio, scene, task="regional_image", regions=layout | masks)
        for masks in ({}, {"masks": sides}, {"masks": sides[::-1]})
    ]
    rectangles, same, swapped = (read(run, "regional-s0") for run in runs)
    assert np.abs(rectangles.astype(int) - same).max() <= 1
    assert not np.array_equal(rectangles, swapped)


def test_words_become_heat_maps(studio, scene):
    method = {"kind": "prompt_to_prompt", "edits": [SWAP]}
    words = ["duck", "purple"]
    run = make(studio, scene, task="edit_image", method=method, word_maps=words)
    with Image.open(run / "word_maps.png") as sheet:
        assert sheet.width > 3 * 192
        assert sheet.height > 2 * 192


def test_the_hottest_place_of_a_map_has_the_hottest_colour():
    heat = torch.zeros(4, 4)
    heat[1, 2] = 1.0
    shown = overlay(torch.full((8, 8, 3), 0.5), heat)
    assert shown.sum(-1).argmax().item() in {8 * row + col for row in (2, 3) for col in (4, 5)}
    assert torch.allclose(overlay(torch.ones(4, 4, 3), torch.zeros(4, 4)), torch.tensor(0.55))


def test_a_plans_colours_fill_its_places():
    from image_tools.control.regional_configs import RegionalConfig, RegionConfig

    plan = RegionalConfig("1,1,1; 1,1", tuple(map(RegionConfig, "abc")))
    picture = plan_picture(plan)
    height, width = picture.shape[:2]
    corners = [picture[2, 2], picture[2, width - 3], picture[height - 3, width // 2]]
    assert len({tuple(color.tolist()) for color in corners}) == 3
    assert torch.equal(picture[height - 3, 2], picture[height - 3, width - 3])


def test_prompts_are_drawn_from_the_same_noise(studio, scene):
    run = make(studio, scene, task="text_to_image", more_prompts=["a green house"], count=2)
    alone = make(studio, scene, task="text_to_image", prompt="a green house", count=2)
    pictures = json.loads((run / "results.json").read_text())["pictures"]
    drawn = [(one["name"], one["prompt"], one["seed"]) for one in pictures]
    both = (("picture1", "a red duck"), ("picture2", "a green house"))
    assert drawn == [(*one, seed) for seed in (0, 1) for one in both]
    for seed in (0, 1):
        second = read(run, f"picture2-s{seed}")
        assert np.array_equal(second, read(alone, f"picture1-s{seed}"))
        assert not np.array_equal(second, read(run, f"picture1-s{seed}"))
    tall, wide = (Image.open(one / "sheet.png").size for one in (run, alone))
    assert tall[1] > wide[1]  # seeds are rows, but of single pictures columns


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_what_was_taught_is_drawn_with(weight, studio, scene, tiny_prior, tmp_path):
    plain = make(studio, scene, task="text_to_image")
    unet = load_prior(PocketPriorConfig(path=str(tiny_prior)), torch.device("cpu")).unet
    write_lora(
        tmp_path / "lora.safetensors",
        random_lora({"unet": unet}, ending="to_q"),
        layout="diffusers",
    )
    subject = {"loras": [{"path": str(tmp_path / "lora.safetensors"), "weight": weight}]}
    base = {"kind": "pocket", "path": str(tiny_prior)}
    prior = {"kind": "personalized", "base": base, "subjects": [subject]}
    taught = make(studio, scene, task="text_to_image", prior=prior)
    is_same = np.array_equal(read(plain, "picture1-s0"), read(taught, "picture1-s0"))
    assert is_same == (weight == 0.0)


def test_pictures_stopped_on_the_way_are_kept_and_the_command_is_told(studio, scene, monkeypatch):
    """Ctrl-C in the second picture: the first stays, and JSON says what happened."""
    drawn = []

    def draw(*_: object) -> torch.Tensor:
        drawn.append(None)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return torch.zeros(SIZE, SIZE, 3)

    monkeypatch.setattr("studio.images.picture.draw_plainly", draw)
    stopped = studio("run", scene(task="text_to_image", count=3), "--out", "runs", "--json")
    (run,) = Path("runs").glob("*/*/run.json")
    assert (stopped.code, stopped.result["error"]) == (130, "Interrupted")
    assert f"studio run {run.parent / 'resolved.yaml'}" in stopped.error
    assert [path.name for path in (run.parent / "images").iterdir()] == ["picture1-s0.png"]
    assert json.loads(run.read_text())["status"] == "interrupted"
