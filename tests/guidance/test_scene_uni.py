"""Distillation beside a Uni-ControlNet: what it is shown of the scene, its formula, and off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guidance.control_sds import ControlSDSGuidance, condition_image
from guidance.control_sds_configs import ControlSDSConfig, SceneMapConfig, SceneUniConfig
from guidance.sds import SDSGuidance
from guidance.vsd import VSDGuidance
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.uni_configs import UniContentConfig
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.control.uni_weights import write_uni
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.photos import PhotosError
from tests.guidance.test_control_sds import RULES, gradient, prompts, views  # noqa: F401
from tests.guidance.test_control_sds import config as with_net
from tests.image_tools.control.tiny_controls import (
    tiny_controlnet,
    tiny_global_adapter,
    tiny_local_adapter,
)
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.vision.tiny_clip import write_tiny_clip

MAPS = (SceneMapConfig("depth", "depth"), SceneMapConfig("edge", "edges"))


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "pocket")


@pytest.fixture(scope="module")
def files(prior, tmp_path_factory) -> Path:
    """Both adapters, each of them alone, a picture, and a CLIP vision model."""
    folder = tmp_path_factory.mktemp("uni")
    local, content = tiny_local_adapter(prior), tiny_global_adapter(prior)
    parts = {"uni": (local, content), "maps": (local, None), "look": (None, content)}
    for name, adapters in parts.items():
        write_uni(folder / f"{name}.safetensors", *adapters)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    write_tiny_clip(folder / "clip", pooled=prior.unet.config.cross_attention_dim)
    return folder


def uni(files: Path, *, name: str = "uni", look: float | None = None, **settings) -> SceneUniConfig:
    """Settings of adapters; ``look`` is the strength of the picture's."""
    content = None
    if look is not None:
        content = UniContentConfig(str(files / "photo.png"), str(files / "clip"), look)
    settings = {"maps": MAPS, "content": content} | settings
    return SceneUniConfig(str(files / f"{name}.safetensors"), **settings)


def shown(output, cameras) -> dict[str, torch.Tensor]:
    """The adapter's maps of a render, by its own names."""
    return {one.name: condition_image(one.sees, output, cameras, size=32) for one in MAPS}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("look", [None, 0.0])
def test_off_is_the_plain_rule_bit_for_bit(rule, look, prior, files, views):  # noqa: F811
    settings = ControlSDSConfig(uni=uni(files, look=look, strength=0.0), rule=RULES[rule])
    guidance = ControlSDSGuidance(settings, prior, prompts(prior), seed=1)
    assert not guidance.wants_normals
    found, _ = gradient(guidance, views)
    guidance.close()
    plain = {"sds": SDSGuidance, "vsd": VSDGuidance}[rule](
        RULES[rule], prior, prompts(prior), seed=1
    )
    expected, _ = gradient(plain, views)
    plain.close()
    assert torch.equal(found, expected)


def test_maps_are_drawn_from_the_scene_and_guide_both_halves(prior, files, views):  # noqa: F811
    settings = ControlSDSConfig(uni=uni(files, strength=0.6), rule=RULES["sds"])
    guidance = ControlSDSGuidance(settings, prior, prompts(prior), seed=0)
    assert guidance.wants_normals, "edges are those of normals"
    found, _ = gradient(guidance, views)
    assert not guidance.uni.maps.requires_grad, "the shape is not moved to please them"

    by_hand = UniControlledPrior(prior, tiny_local_adapter(prior), maps=shown(*views), strength=0.6)
    expected, _ = gradient(SDSGuidance(RULES["sds"], by_hand, prompts(prior)), views)
    assert torch.equal(found, expected)
    plain, _ = gradient(SDSGuidance(RULES["sds"], prior, prompts(prior)), views)
    assert float((plain - found).abs().max()) > 1e-3 * float(plain.abs().max())


def test_the_look_of_a_picture_is_the_same_for_every_view(prior, files, views):  # noqa: F811
    settings = ControlSDSConfig(uni=uni(files, name="look", look=1.0, maps=()), rule=RULES["sds"])
    guidance = ControlSDSGuidance(settings, prior, prompts(prior), seed=0)
    assert not guidance.wants_normals
    assert guidance.uni.embedding.shape[0] == 1
    found, _ = gradient(guidance, views)
    by_hand = UniControlledPrior(
        prior, content=tiny_global_adapter(prior), embedding=guidance.uni.embedding
    )
    expected, _ = gradient(SDSGuidance(RULES["sds"], by_hand, prompts(prior)), views)
    assert torch.equal(found, expected)
    plain, _ = gradient(SDSGuidance(RULES["sds"], prior, prompts(prior)), views)
    assert not torch.equal(found, plain)


def test_it_acts_beside_controlnets(prior, files, views, tmp_path):  # noqa: F811
    tiny_controlnet(prior).save_pretrained(tmp_path)
    settings = replace(with_net(str(tmp_path)), uni=uni(files))
    found, _ = gradient(ControlSDSGuidance(settings, prior, prompts(prior), seed=0), views)
    maps = shown(*views)
    nets = ControlledPrior(prior, [Control(tiny_controlnet(prior), maps["depth"])])
    both = UniControlledPrior(nets, tiny_local_adapter(prior), maps=maps)
    expected, _ = gradient(SDSGuidance(RULES["sds"], both, prompts(prior)), views)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"name": "absent"}, WeightsMissing, "Weights for the uni.model are missing"),
        ({"name": "look"}, WeightsMissing, "holds no adapter for maps - expected one. Leave uni"),
        ({"name": "maps", "look": 1.0}, WeightsMissing, "holds no adapter for content"),
        (
            {"maps": (SceneMapConfig("midas"),)},
            UnsupportedModel,
            "knows no condition named midas - expected some of edge, depth",
        ),
    ],
)
def test_files_that_do_not_serve_are_refused(settings, error, said, prior, files):
    config = ControlSDSConfig(uni=uni(files, **settings))
    with pytest.raises(error, match=said):
        ControlSDSGuidance(config, prior, prompts(prior), seed=0)


def test_a_look_that_cannot_be_seen_is_refused(prior, files):
    absent, colours = (UniContentConfig(str(files / f"{name}.png")) for name in ("no", "photo"))
    config = ControlSDSConfig(uni=uni(files, content=absent))
    with pytest.raises(PhotosError, match=r"no\.png"):
        ControlSDSGuidance(config, prior, prompts(prior), seed=0)
    config = ControlSDSConfig(uni=uni(files, content=colours))
    with pytest.raises(UnsupportedModel, match=r"uni\.content\.encoder: makes 384 numbers"):
        ControlSDSGuidance(config, prior, prompts(prior), seed=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"maps": ()}, "maps is empty and there is no content - expected at least one"),
        ({"maps": (*MAPS, MAPS[0])}, "maps are named depth, edge, depth - expected each name once"),
        ({"strength": -1.0}, r"strength is -1\.0 - expected 0 or more"),
    ],
)
def test_settings_without_meaning_are_refused(settings, said, files):
    with pytest.raises(ValueError, match=said):
        uni(files, **settings)
