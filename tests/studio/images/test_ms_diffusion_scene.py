"""Scenes with subjects in boxes: the preset, what is refused, and a run with a tiny adapter."""

from __future__ import annotations

import numpy as np
import pytest

from image_tools.errors import UnsupportedModel
from image_tools.personalization.ms_diffusion_configs import (
    AutoLayoutConfig,
    MSDiffusionConfig,
    MSSubjectConfig,
)
from image_tools.personalization.ms_diffusion_loading import load_ms_diffusion_prior
from image_tools.personalization.references import build_reference_tool, reference_files
from studio.config import load_task
from studio.errors import ConfigError
from tests.image_tools.personalization.tiny_subjects import write_tiny_adapter
from tests.image_tools.vision.tiny_clip import write_tiny_clip
from tests.studio.images.conftest import read, write_picture

PRESET = "reference-ms-diffusion"
DUCK = {"phrase": "duck", "box": [0.0, 0.0, 0.5, 1.0]}


@pytest.fixture(scope="module")
def weights(prior, tmp_path_factory):
    """An image encoder and an adapter for the tiny prior."""
    return write_tiny_adapter(tmp_path_factory.mktemp("ms"), prior)


def test_the_preset_is_a_form():
    config = load_task(PRESET, ["tool.weights=mine.safetensors"]).config
    assert (config.task, config.means) == ("reference_image", "ms_diffusion")
    assert config.tool.models() == [
        ("weights", "mine.safetensors"),
        ("image_encoder", "image_encoder"),
    ]
    assert config.tool.pictures() == [
        ("subjects.0.images.0", "dog.jpg"),
        ("subjects.1.images.0", "cat.jpg"),
    ]
    assert config.tool.scale == 0.6
    free = load_task(PRESET, ["tool.layout={}", "tool.subjects.0.box=null"]).config.tool
    assert (free.layout.threshold, free.layout.start_step) == (0.5, 5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("prompt=a dog", r"tool\.subjects\.1\.phrase: 'cat' stands nowhere in the prompt 'a dog'"),
        ("tool.subjects.1.phrase=dog", r"subjects\.1\.phrase: 'dog' stands once in the prompt"),
        ("tool.subjects.0.box=[0,0,512,512]", r"box is \[0.0, 0.0, 512.0, 512.0\] - expected lef"),
        ("tool.subjects.0.box=[0.5,0,0.5,1]", r"box is \[0.5, 0.0, 0.5, 1.0\], which is empty"),
        ("tool.subjects.0.box=null", r"tool\.subjects\.0\.box: is empty - expected the place of"),
        ("tool.subjects.0.images=[a,b,c,d]", "subjects have 5 images together - expected 1 to 4"),
        ("tool.subjects.0.images=[]", "images is empty - expected at least one picture of the"),
        ("tool.subjects.0.phrase=", "phrase is empty - expected words of the prompt"),
        ("tool.subjects=[]", "subjects have 0 images together"),
        ("tool.layout={start_step: 0}", "start_step is 0 - expected at least 1"),
        ("tool.scale=-1", "scale is -1.0 - expected 0 or more"),
        ("tool.layout={threshold: 2}", r"threshold is 2.0 - expected 0 to 1"),
    ],
)
def test_subjects_that_cannot_be_placed_are_refused_before_anything_is_read(setting, said):
    with pytest.raises(ConfigError, match=said):
        load_task(PRESET, [setting])


def test_a_run_draws_without_and_with_the_subjects(studio, scene, weights, tmp_path):
    duck = DUCK | {"images": [write_picture(tmp_path / "duck.png", size=(20, 30))]}
    tool = {"kind": "ms_diffusion", "subjects": [duck], "scale": 1.0, **weights}
    done = studio("run", scene(task="reference_image", tool=tool), "--json")
    assert done.code == 0, done.err
    (run,) = (path.parent for path in tmp_path.glob("runs/*/*/results.json"))
    names = {path.name for path in (run / "images").iterdir()}
    assert names == {"plain-s0.png", "reference1.png", "layout.png", "referenced-s0.png"}
    difference = np.abs(read(run, "plain-s0").astype(int) - read(run, "referenced-s0"))
    assert difference.max() > 0


def test_it_is_built_with_and_without_a_sampler(prior, weights, tmp_path):
    picture = write_picture(tmp_path / "duck.png")
    subject = MSSubjectConfig((picture, picture), "duck", (0.0, 0.0, 0.5, 1.0))
    config = MSDiffusionConfig(subjects=(subject,), **weights)
    assert [path.name for path in reference_files(config)] == [
        "ms_adapter.bin",
        "model.safetensors",
    ]
    built = build_reference_tool(config, prior)
    assert built.subjects.boxes.shape == (1, 2, 4)
    assert built.maps is None
    free = MSDiffusionConfig(subjects=(subject,), layout=AutoLayoutConfig(), **weights)
    drawn = load_ms_diffusion_prior(free, prior, prompt="a red duck", steps=4)
    assert drawn.subjects.words[0, 0].any()
    with pytest.raises(UnsupportedModel, match="layout finds places while a sampler draws"):
        build_reference_tool(free, prior)
    write_tiny_clip(tmp_path / "other", width=16)
    other = {**weights, "image_encoder": str(tmp_path / "other")}
    with pytest.raises(UnsupportedModel, match="image_encoder makes tokens of 16 numbers"):
        build_reference_tool(MSDiffusionConfig(subjects=(subject,), **other), prior)
