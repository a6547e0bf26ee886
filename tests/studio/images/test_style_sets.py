"""Scenes that draw in one style: sets, a picture's style, and the same tool on a prior for 3D."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from image_tools.configs import PocketPriorConfig, ReferencedPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.personalization.style_aligned import StyleReferencePrior
from image_tools.personalization.style_aligned_configs import StyleAlignedConfig
from renderers.errors import StudioError
from studio.config import load_task
from studio.errors import ConfigError
from tests.studio.images.conftest import read, write_picture
from tests.studio.images.test_picture_runs import make

SET = {"kind": "style_aligned", "prompts": ["a purple mushroom"], "style": "dotted"}
NOTHING = {"attention": "off", "normalized": [], "group_norm": "own"}


def files_of(run) -> list[str]:
    return sorted(path.stem for path in (run / "images").iterdir())


def test_a_set_is_drawn_alone_and_in_one_style(studio, scene):
    run = make(studio, scene, task="reference_image", tool=SET)
    assert files_of(run) == ["aligned1-s0", "aligned2-s0", "alone1-s0", "alone2-s0"]
    pairs = [
        [read(run, f"{name}{k}-s0").astype(int) for name in ("alone", "aligned")] for k in (1, 2)
    ]
    assert np.abs(pairs[0][0] - pairs[0][1]).max() <= 1  # the first one gives the style
    assert np.abs(pairs[1][0] - pairs[1][1]).max() > 1
    pictures = json.loads((run / "results.json").read_text())["pictures"]
    assert [one["prompt"] for one in pictures] == 2 * [
        "a red duck, dotted.",
        "a purple mushroom, dotted.",
    ]
    again = make(studio, scene, task="reference_image", tool=SET | {"sharing": NOTHING})
    for k in (1, 2):
        assert np.array_equal(read(again, f"aligned{k}-s0"), read(run, f"alone{k}-s0"))


def test_a_picture_gives_its_style(studio, scene, tmp_path):
    picture = write_picture(tmp_path / "vase.png", size=(50, 40))
    tool = {"kind": "style_aligned", "image": picture, "image_prompt": "a dotted vase"}
    done = studio("run", scene(task="reference_image", tool=tool), "--out", "runs", "--json")
    assert done.error.startswith("offset is 5 with 3 steps of the sampler - expected less.")
    tool["inversion"] = {"offset": 1}
    run = make(studio, scene, task="reference_image", tool=tool)
    assert files_of(run) == ["aligned1-s0", "alone1-s0", "reference"]
    assert not np.array_equal(read(run, "aligned1-s0"), read(run, "alone1-s0"))


def test_the_tool_is_put_around_a_prior_for_3d(tiny_prior, tmp_path):
    picture = write_picture(tmp_path / "vase.png")
    tool = StyleAlignedConfig(image=picture, image_prompt="a vase", style="dotted")
    config = ReferencedPriorConfig(base=PocketPriorConfig(path=str(tiny_prior)), tool=tool)
    prior = load_prior(config, torch.device("cpu"))
    assert isinstance(prior, StyleReferencePrior)
    assert prior.reference.prompt == "a vase, dotted."
    without = ReferencedPriorConfig(base=config.base, tool=StyleAlignedConfig(prompts=("a duck",)))
    with pytest.raises(StudioError, match="a picture whose style is taken"):
        load_prior(without, torch.device("cpu"))


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({}, "there are neither an image nor prompts"),
        ({"image": "x.png"}, "image_prompt is empty"),
        (SET | {"sharing": {"only_self_level": 2}}, "only_self_level is 2"),
        (SET | {"inversion": {"offset": -1}}, "offset is -1 - expected 0 or more"),
        (
            {"image": "x.png", "image_prompt": "x", "sharing": {"attention": "full"}},
            "attention is full with an image",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tool, words, scene):
    with pytest.raises(ConfigError) as caught:
        load_task(scene(task="reference_image", tool={"kind": "style_aligned"} | tool))
    assert words in str(caught.value)
