"""Score distillation by regions: what it equals, where each prompt speaks, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from guidance.build import build_guidance
from guidance.configs import PerpNegPromptsConfig, SDSConfig
from guidance.layout_parts import LayoutObject
from guidance.prompts import build_view_prompts
from guidance.regional_sds import RegionalPrompts
from guidance.regional_sds_configs import RegionalSDSConfig
from image_tools.diffusion.loading import load_folder
from image_tools.errors import UnsupportedModel
from renderers.boxes import box_masks
from tests.guidance.layouts import (
    EVERYTHING,
    LEFT,
    RIGHT,
    SCENE,
    cameras,
    gradient,
    objects_of,
    prompts_of,
    sds_config,
)

MODES = ["attn_crop", "attn_resize", "latent"]


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def rule(prior, objects=(), scene=SCENE, **settings):
    config = RegionalSDSConfig(sds=sds_config(), **settings)
    return build_guidance(config, prior, prompts_of(prior, scene), seed=0, layout=objects)


def plain(prior, prompt):
    return build_guidance(sds_config(), prior, prompts_of(prior, prompt), seed=0)


@pytest.mark.parametrize("mode", MODES)
def test_without_objects_and_with_the_scene_s_share_alone_it_is_plain_sds_bit_for_bit(prior, mode):
    expected = gradient(plain(prior, SCENE))
    assert torch.equal(gradient(rule(prior, mode=mode)), expected)
    objects = objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)
    assert torch.equal(gradient(rule(prior, objects, mode=mode, base_ratio=1.0)), expected)


@pytest.mark.parametrize("mode", ["attn_crop", "latent"])
def test_the_scene_s_prompt_in_every_box_is_plain_sds(prior, mode):
    objects = [LayoutObject(box, prompts_of(prior, SCENE)) for box in (LEFT, RIGHT)]
    found = gradient(rule(prior, objects, mode=mode))
    torch.testing.assert_close(found, gradient(plain(prior, SCENE)), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_box_around_the_cameras_is_that_object_s_own_sds(prior, mode):
    objects = objects_of(prior, a_blue_mushroom=EVERYTHING)
    found = gradient(rule(prior, objects, mode=mode, base_ratio=0.0))
    expected = gradient(plain(prior, "a blue mushroom"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert (found - gradient(plain(prior, SCENE))).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_views_is_its_views_one_by_one(prior, mode):
    objects = objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)
    prompts = RegionalPrompts(
        RegionalSDSConfig(mode=mode), prior, prompts_of(prior, SCENE), objects
    )
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, around = torch.tensor([100, 500, 900]), cameras(3)
    with torch.no_grad():
        whole = prompts.at(around).guided_noise(prior, latents, t, 5.0)
        for k in range(3):
            alone = prompts.at(around[k]).guided_noise(prior, latents[k : k + 1], t[k : k + 1], 5.0)
            torch.testing.assert_close(whole[k : k + 1], alone, atol=1e-4, rtol=1e-4)


def test_regions_are_where_the_boxes_are_seen_and_change_sides_behind(prior):
    objects = objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)
    prompts = RegionalPrompts(RegionalSDSConfig(), prior, prompts_of(prior, SCENE), objects)
    masks = prompts.at(cameras(2)).masks
    torch.testing.assert_close(masks, box_masks([LEFT, RIGHT], cameras(2), (64, 64), samples=1))
    columns = torch.arange(64.0)
    middle = (masks.sum(dim=2) * columns).sum(dim=-1) / masks.sum(dim=(2, 3))
    assert middle[0, 0] < 32 < middle[0, 1], "left of, from the front"
    assert middle[1, 1] < 32 < middle[1, 0], "the other way round from behind"


def test_in_latent_mode_each_latent_has_its_box_s_prediction(prior):
    objects = objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)
    config = RegionalSDSConfig(mode="latent", base_ratio=0.25)
    prompts = RegionalPrompts(config, prior, prompts_of(prior, SCENE), objects)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    t, around = torch.tensor([300, 800]), cameras(2)
    with torch.no_grad():
        found = prompts.at(around).guided_noise(prior, latents, t, 5.0)
        base, *own = (
            text.at(around).guided_noise(prior, latents, t, 5.0)
            for text in (prompts.scene, *(item.prompts for item in objects))
        )
    masks = torch.nn.functional.avg_pool2d(prompts.at(around).masks, 8)
    expected = base * (1.0 - 0.75 * masks.sum(dim=1, keepdim=True))
    for k, prediction in enumerate(own):
        expected = expected + 0.75 * masks[:, k : k + 1] * prediction
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_prompts_with_negatives_for_other_views_are_refused(prior):
    scene = build_view_prompts(PerpNegPromptsConfig(), prior, SCENE)
    objects = objects_of(prior, a_red_duck=LEFT)
    with pytest.raises(UnsupportedModel, match="perp_neg, whose negatives have no place"):
        RegionalPrompts(RegionalSDSConfig(), prior, scene, objects).at(cameras())


def test_settings_that_are_no_share_are_refused():
    with pytest.raises(ValueError, match=r"base_ratio is 1\.5 - expected 0 to 1"):
        RegionalSDSConfig(base_ratio=1.5)
    assert RegionalSDSConfig().sds == SDSConfig()
