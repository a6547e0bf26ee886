"""KOSMOS-G from a scene file: the preset is a form, and prompts and images must fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from guidance.configs import DirectionalPromptsConfig
from guidance.prompts import build_view_prompts
from image_tools.configs import PocketPriorConfig, ReferencedPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.kosmos_g_configs import KosmosGConfig
from image_tools.personalization.kosmos_g_weights import write_kosmos_g
from image_tools.personalization.references import build_reference_tool, reference_files
from studio.config import load_task
from studio.errors import ConfigError
from tests.image_tools.personalization.tiny_kosmos import tiny_kosmos
from tests.studio.images.conftest import read, write_picture

PRESET = "reference-kosmos-g"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kosmos")
    write_kosmos_g(folder / "kosmos-g", tiny_kosmos(folder / "data", queries=24))
    return folder / "kosmos-g"


def test_the_preset_is_a_form():
    config = load_task(PRESET, ["tool.images=[cat.jpg,hat.jpg]"]).config
    assert (config.task, config.means) == ("reference_image", "kosmos_g")
    assert config.sampler.guidance_scale == 7.5
    assert config.tool.pictures() == [("images.0", "cat.jpg"), ("images.1", "hat.jpg")]
    assert config.tool.models() == [("weights", "kosmos-g")]
    assert config.tool.plain_prompt(config.prompt) == "a wearing a on the beach"


def made(done) -> Path:
    """The folder of a run that ended well."""
    assert done.code == 0, done.err
    return Path(done.result["run"])


@pytest.mark.parametrize("change", ["tool.images=[cat.jpg]", "prompt=a cat on the beach"])
def test_another_number_of_images_is_refused_before_anything_is_read(change):
    with pytest.raises(ConfigError, match=r"tool\.images: The prompt '.*' has <i> \d times, and"):
        load_task(PRESET, [change])


def test_a_scene_draws_with_its_images(studio, scene, weights, tmp_path):
    images = [write_picture(tmp_path / f"{k}.png", seed=k) for k in (1, 2)]
    tool = {"kind": "kosmos_g", "weights": str(weights), "images": images}
    path = scene(task="reference_image", prompt="a <i> hat, a <i>", tool=tool)
    run = made(studio("run", path, "--json"))
    assert {file.stem for file in (run / "images").iterdir()} == {
        *("plain-s0", "reference1", "reference2", "referenced-s0"),
    }
    assert (read(run, "plain-s0") != read(run, "referenced-s0")).any()
    words = scene(task="reference_image", prompt="a hat, a", tool=tool | {"images": []})
    again = made(studio("run", words, "--json"))
    assert np.array_equal(read(run, "plain-s0"), read(again, "plain-s0"))
    assert (read(run, "referenced-s0") != read(again, "referenced-s0")).any()


def test_a_missing_folder_is_one_clear_error(studio, scene, tmp_path):
    tool = {"kind": "kosmos_g", "weights": "absent", "images": []}
    done = studio("run", scene(task="reference_image", prompt="a hat", tool=tool))
    assert done.code == 3
    assert "Weights for the tool.weights are missing: 'absent' is not there" in done.error


def test_what_is_no_folder_of_the_tool_is_refused(prior, weights, tmp_path):
    path = write_picture(tmp_path / "picture.png")
    with pytest.raises(UnsupportedModel, match="is a file - expected a folder with mllm"):
        build_reference_tool(KosmosGConfig(path), prior)
    with pytest.raises(WeightsMissing, match="Weights for the KOSMOS-G mllm are missing"):
        build_reference_tool(KosmosGConfig(str(tmp_path)), prior)
    files = reference_files(KosmosGConfig(str(weights)))
    assert sorted(file.parent.name for file in files) == ["aligner", "mllm"]


def test_it_guides_a_scene_in_3d_through_prompts_by_view(tiny_prior, weights, tmp_path):
    """View words come after the images; every view has states of its own."""
    picture = write_picture(tmp_path / "a.png", seed=1)
    config = ReferencedPriorConfig(
        KosmosGConfig(str(weights), images=(picture,)), base=PocketPriorConfig(path=str(tiny_prior))
    )
    prior = load_prior(config, torch.device("cpu"))
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "a <i>")
    assert prompts.views.tokens.shape[1:] == (24, 16)
    wanted = prior.encode_prompt(["a <i>, back view"]).tokens
    assert any(torch.equal(row, wanted[0]) for row in prompts.views.tokens)
