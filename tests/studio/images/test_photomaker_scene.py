"""Scenes with a person of photos: the preset, what is refused, a run, and the prior for 3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.configs import PocketPriorConfig, ReferencedPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.personalization.photomaker import PhotoMakerPrior
from image_tools.personalization.photomaker_configs import PhotoMakerConfig
from image_tools.personalization.photomaker_files import write_photomaker
from image_tools.personalization.references import reference_files
from studio.config import load_task
from studio.errors import ConfigError
from tests.image_tools.personalization.tiny_photomakers import tiny_photomaker
from tests.studio.images.conftest import read, write_picture
from tests.studio.images.test_picture_runs import make


@pytest.fixture(scope="module")
def weights(prior, tmp_path_factory):
    """A PhotoMaker for the tiny prior, which is none of SDXL's kind."""
    path = tmp_path_factory.mktemp("photomaker") / "photomaker.bin"
    write_photomaker(path, tiny_photomaker(prior, "v1"))
    return str(path)


def test_the_preset_is_a_form():
    config = load_task("reference-photomaker", ["tool.photos=[me.jpg]"]).config
    assert (config.task, config.means) == ("reference_image", "photomaker")
    assert config.tool.pictures() == [("photos.0", "me.jpg")]
    assert config.tool.models() == [("weights", "photomaker-v1.bin")]
    assert config.tool.plain_prompt(config.prompt) == "a portrait of a man, oil painting"


def test_prompts_without_the_trigger_are_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"tool\.trigger: The prompt 'a man' does not hold the"):
        load_task("reference-photomaker", ["prompt=a man"])


def test_a_run_draws_the_person_beside_the_plain_picture(studio, scene, tmp_path, weights):
    photos = [write_picture(tmp_path / f"{seed}.png", seed=seed) for seed in (1, 2)]
    settings = {"task": "reference_image", "prompt": "a duck img"}
    tool = {"kind": "photomaker", "weights": weights, "photos": photos, "style_strength": 30.0}
    run = make(studio, scene, tool=tool, **settings)
    names = ["plain-s0", "reference1", "reference2", "referenced-s0"]
    assert sorted(path.stem for path in (run / "images").iterdir()) == names
    assert not np.array_equal(read(run, "plain-s0"), read(run, "referenced-s0"))
    nobody = tool | {"style_strength": 100.0, "lora_weight": 0.0}
    again = make(studio, scene, tool=nobody, **settings)
    for name in ("plain-s0", "referenced-s0"):
        assert np.array_equal(read(again, name), read(run, "plain-s0"))


def test_the_tool_is_put_around_a_prior_for_3d(tiny_prior, tmp_path, weights):
    tool = PhotoMakerConfig(weights, photos=(write_picture(tmp_path / "me.png"),))
    config = ReferencedPriorConfig(tool, base=PocketPriorConfig(path=str(tiny_prior)))
    prior = load_prior(config, torch.device("cpu"))
    assert isinstance(prior, PhotoMakerPrior)
    assert (prior.merge_t, len(prior.person.rows)) == (799, 1)
    assert [str(file) for file in reference_files(tool)] == [weights]
