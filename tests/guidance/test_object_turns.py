"""Guidance object by object: whose turn it is, what cameras see, who is told what."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from guidance.build import build_guidance
from guidance.configs import PlainPromptsConfig, SDSConfig
from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_multiview_configs import LayoutMultiViewConfig
from guidance.layout_parts import LayoutObject
from guidance.multiview import MultiViewGuidance
from guidance.multiview_configs import MultiViewConfig
from guidance.object_turns import ObjectTurns, turn_of
from guidance.prompts import build_view_prompts
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.sds import SDSGuidance
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import PriorParts
from renderers.box_configs import BoxConfig
from renderers.camera_configs import MultiViewCamerasConfig
from renderers.cameras import Cameras, sample_cameras
from tests.image_tools.tiny_unets import tiny_multiview_unet

CPU = torch.device("cpu")
BOXES = (
    BoxConfig((0.0, -0.45, 0.0), (0.6, 0.5, 0.8)),
    BoxConfig((0.1, 0.4, -0.1), (0.4, 0.4, 0.4)),
)
INNER = MultiViewConfig(guidance_scale=7.0)


@pytest.fixture(scope="module")
def prior(tiny_pipelines) -> MultiViewPrior:
    """Random weights on a tiny pocket's VAE, text and schedule."""
    base = load_folder(tiny_pipelines["pocket"], CPU)
    parts = PriorParts(tiny_multiview_unet(), base.vae, base.text, base.scheduler_config, "tiny")
    return MultiViewPrior(parts, views=4)


@pytest.fixture(scope="module")
def single(tiny_pipelines):
    """A prior of single images."""
    return load_folder(tiny_pipelines["pocket"], CPU)


@pytest.fixture
def drawn() -> Cameras:
    config = MultiViewCamerasConfig(batch_size=4, height=32, width=32)
    return sample_cameras(config, torch.Generator().manual_seed(4), fraction=0.0)


def rule(prior, **settings) -> ObjectTurns:
    return placed(prior, LayoutMultiViewConfig(multiview=INNER, **settings))


def placed(prior, config):
    """A rule for two objects."""
    prompts = [prompts_of(prior, text) for text in ("red duck", "blue teapot")]
    objects = [LayoutObject(box, own) for box, own in zip(BOXES, prompts, strict=True)]
    scene = prompts_of(prior, "red duck left of blue teapot")
    return build_guidance(config, prior, scene, seed=0, layout=objects)


def prompts_of(prior, text: str):
    return build_view_prompts(PlainPromptsConfig(), prior, text, "")


def gradient(guidance, cameras) -> torch.Tensor:
    """On random renders."""
    images = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    images.requires_grad_()
    generator = torch.Generator().manual_seed(9)
    guidance(images, cameras, fraction=0.3, generator=generator).loss.backward()
    return images.grad


@pytest.mark.parametrize("whole", [0.0, 0.2, 0.37, 1.0])
def test_the_scene_gets_its_share_of_the_steps_and_objects_take_turns(whole):
    turns = [turn_of(step, 3, whole) for step in range(1000)]
    assert turns.count(None) == math.floor(1000 * whole)
    objects = [turn for turn in turns if turn is not None]
    assert objects == [k % 3 for k in range(len(objects))]
    gaps = [step for step, turn in enumerate(turns) if turn is None]
    spread = {later - earlier for earlier, later in itertools.pairwise(gaps)}
    assert not spread or max(spread) - min(spread) <= 1, "evenly"


def test_each_object_is_guided_by_its_own_prompt_and_the_cameras_as_drawn(prior, drawn):
    guidance = rule(prior, whole=1 / 3)
    expected = ["red duck", "blue teapot", "red duck left of blue teapot"]
    for text in expected:
        cameras = guidance.choose_views(drawn)
        alone = MultiViewGuidance(INNER, prior, prompts_of(prior, text))
        assert torch.equal(gradient(guidance, cameras), gradient(alone, drawn)), text
        assert (cameras.within is None) == (text == expected[2])


@pytest.mark.parametrize("kind", [RegionalSDSConfig, LayoutGuidedConfig])
def test_close_ups_are_score_distillation_of_single_objects_among_whole_scenes(kind, single, drawn):
    guidance, scene = (placed(single, kind(close_ups=share)) for share in (2 / 3, 0.0))
    assert type(scene) is SDSGuidance
    for text in ("red duck", "blue teapot", None):
        cameras = guidance.choose_views(drawn)
        alone = SDSGuidance(SDSConfig(), single, prompts_of(single, text or ""))
        expected = gradient(scene if text is None else alone, drawn)
        assert torch.equal(gradient(guidance, cameras), expected), text
        assert (cameras.within is None) == (text is None)


@pytest.mark.parametrize("kind", [RegionalSDSConfig, LayoutGuidedConfig])
def test_close_ups_without_a_layout_are_whole_scenes(kind, single, drawn):
    prompts = prompts_of(single, "red duck")
    found = build_guidance(kind(close_ups=0.5), single, prompts, seed=0)
    plain = build_guidance(SDSConfig(), single, prompts, seed=0)
    assert torch.equal(gradient(found, drawn), gradient(plain, drawn))


def test_close_ups_alone_need_no_strength_of_the_layout(single, drawn):
    guidance = placed(single, LayoutGuidedConfig(scale=0.0, close_ups=1.0))
    assert guidance.choose_views(drawn).within is not None


def test_a_resumed_rule_goes_on_with_the_next_object(prior, drawn):
    first = rule(prior)
    first.choose_views(drawn)
    again = rule(prior)
    again.load_state(first.state())
    assert torch.equal(again.choose_views(drawn).within, first.choose_views(drawn).within)
    assert not torch.equal(again.choose_views(drawn).within, again.choose_views(drawn).within)


def test_without_a_layout_it_is_multiview_guidance_bit_for_bit(prior, drawn):
    prompts = prompts_of(prior, "red duck")
    plain = build_guidance(LayoutMultiViewConfig(multiview=INNER), prior, prompts, seed=0)
    expected = build_guidance(INNER, prior, prompts, seed=0)
    assert plain.choose_views(drawn) is drawn
    assert torch.equal(gradient(plain, drawn), gradient(expected, drawn))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"whole": 1.5}, "whole is 1.5 - expected 0 to 1"),
        ({"object_radius": 0.0}, "object_radius is 0.0 - expected more than 0"),
        ({"margin": 0.9}, "margin is 0.9 - expected at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LayoutMultiViewConfig(**settings)


@pytest.mark.parametrize("kind", [RegionalSDSConfig, LayoutGuidedConfig])
def test_impossible_close_ups_are_refused(kind):
    with pytest.raises(ValueError, match=r"close_ups is 2\.0 - expected 0 to 1"):
        kind(close_ups=2.0)
    with pytest.raises(ValueError, match=r"object_radius is 0\.0 - expected more than 0"):
        kind(object_radius=0.0)
