"""3D scenes with subjects in their layout: they run and resume, and refuse what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from image_tools.configs import PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from studio.config import load_scene
from studio.errors import ConfigError, WeightsMissing
from studio.runner import Runner
from studio.scene_inputs import check_inputs
from tests.image_tools.personalization.tiny_subjects import write_tiny_adapter
from tests.studio.conftest import start
from tests.studio.test_runner import assert_equal_bits, run_to_the_end

LAYOUT = (
    "prompt=a red duck left of a mushroom",
    "layout=[{prompt: a red duck, center: [0.0, -0.4, 0.0], size: [0.5, 0.5, 0.7]}, "
    "{prompt: a mushroom, center: [0.0, 0.4, 0.0], size: [0.5, 0.5, 0.7]}]",
    "stages.0.steps=2",
)


@pytest.fixture(scope="module")
def arguments(tiny_prior, tmp_path_factory):
    """A layout whose duck looks like a picture."""
    folder = tmp_path_factory.mktemp("subjects")
    prior = load_prior(PocketPriorConfig(path=str(tiny_prior)), torch.device("cpu"))
    files = write_tiny_adapter(folder, prior)
    Image.fromarray(np.full((8, 8, 3), 90, dtype=np.uint8)).save(folder / "duck.png")
    tool = (
        f"{{kind: ms_diffusion, weights: {files['weights']}, image_encoder: "
        f"{files['image_encoder']}, subjects: [{{images: [{folder / 'duck.png'}], phrase: duck}}]}}"
    )
    rule = f"stages.0.guidance={{kind: subjects_sds, tool: {tool}, sds: {{guidance_scale: 7.0}}}}"
    return (*LAYOUT, rule)


@pytest.mark.slow
def test_a_scene_with_subjects_resumes_bit_for_bit(tiny_scene, tmp_path, arguments):
    config, whole = start(tiny_scene, tmp_path / "whole", *arguments)
    check_inputs(config)
    expected = run_to_the_end(config, whole)
    config, parts = start(tiny_scene, tmp_path / "parts", *arguments)
    first = Runner(config, parts)
    first.step()
    first.save()
    assert_equal_bits(expected, run_to_the_end(config, parts))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["stages.0.guidance.tool.subjects.0.phrase=cat"],
            r"stages\.0\.guidance\.tool\.subjects\.0\.phrase: 'cat' names no object",
        ),
        (["view_prompts.kind=perp_neg"], "negatives that would show the subjects too"),
        (["stages.0.guidance.tool.layout={}"], "places come from the scene's layout"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_scene, arguments, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_scene(tiny_scene, [*arguments, *changes])


@pytest.mark.parametrize(
    ("key", "error"), [("subjects.0.images.0", ConfigError), ("weights", WeightsMissing)]
)
def test_files_are_looked_for_before_a_run(tiny_scene, arguments, key, error):
    changed = f"stages.0.guidance.tool.{key}=nowhere.png"
    scene = load_scene(tiny_scene, [*arguments, changed]).config
    with pytest.raises(error, match=rf"stages\.0\.guidance\.tool\.{key}.*nowhere"):
        check_inputs(scene)
