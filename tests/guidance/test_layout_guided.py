"""Layout guidance: its energy in closed forms, its gradient, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch

from guidance.build import build_guidance
from guidance.configs import DirectionalPromptsConfig, ViewWordsConfig
from guidance.layout_guided import LayoutPrompts
from guidance.layout_guided_configs import LayoutGuidedConfig, LayoutTermsConfig
from guidance.layout_guided_energy import WordAttention, layout_energy
from guidance.layout_parts import LayoutObject, object_tokens
from guidance.prompts import build_view_prompts
from image_tools.diffusion.attention import attention_operations
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.parametrization import alpha_sigma
from image_tools.editing.align import tokenize_prompt
from image_tools.errors import UnsupportedModel
from renderers.errors import StudioError
from tests.guidance.layouts import (
    LEFT,
    RIGHT,
    SCENE,
    cameras,
    gradient,
    objects_of,
    prompts_of,
    sds_config,
)

ALL_TERMS = LayoutTermsConfig(inside=1.0, centroid=0.5, size=0.7, shape=0.3)
T = torch.tensor([800, 600])


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


@pytest.fixture(scope="module")
def objects(prior):
    return objects_of(prior, a_red_duck=LEFT, a_blue_mushroom=RIGHT)


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def rule(prior, objects=(), low=0.02, high=0.98, **settings):
    config = LayoutGuidedConfig(sds=sds_config(low, high), **settings)
    return build_guidance(config, prior, prompts_of(prior, SCENE), seed=0, layout=objects)


def plain(prior, low=0.02, high=0.98):
    return build_guidance(sds_config(low, high), prior, prompts_of(prior, SCENE), seed=0)


def condition(prior, objects, around=None, **settings):
    config = LayoutGuidedConfig(**settings)
    prompts = LayoutPrompts(config, prior, prompts_of(prior, SCENE), objects)
    return prompts.at(cameras() if around is None else around)


def test_off_it_is_plain_sds_bit_for_bit(prior, objects):
    expected = gradient(plain(prior))
    assert torch.equal(gradient(rule(prior)), expected), "no objects"
    assert torch.equal(gradient(rule(prior, objects, scale=0.0)), expected), "no strength"
    late = gradient(plain(prior, high=0.45))
    assert torch.equal(gradient(rule(prior, objects, high=0.45)), late), "no view is early enough"
    assert (gradient(rule(prior, objects)) - expected).abs().max() > 1e-6


def test_noise_moves_by_v_sigma_times_the_slope_in_early_views_alone(prior, objects, latents):
    told, t = condition(prior, objects, scale=30.0), torch.tensor([800, 300])
    with torch.no_grad():
        found = told.guided_noise(prior, latents, t, 5.0)
        before = told.text.guided_noise(prior, latents, t, 5.0)
    assert torch.equal(found[1], before[1])
    slope = told.energy_gradient(prior, latents, t, torch.tensor([0]))
    _, sigma = alpha_sigma(prior.alphas_cumprod, t[:1], latents)
    torch.testing.assert_close((found - before)[:1], 30.0 * sigma * slope, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("terms", [LayoutTermsConfig(), ALL_TERMS], ids=["inside", "all"])
def test_slope_is_that_of_finite_differences_and_descends(prior, objects, latents, terms):
    told = condition(prior, objects, terms=terms)
    rows = torch.arange(2)

    @torch.no_grad()
    def energy(z):
        watcher = WordAttention((0, 1))
        with attention_operations(prior.unet, [watcher]):
            prior.predict_output(z, T, told.text.positive)
        return layout_energy(terms, watcher.seen(), told.tokens, told.masks)

    slope = told.energy_gradient(prior, latents, T, rows)
    unit = slope / slope.norm()
    step = 0.02
    change = (energy(latents + step * unit).sum() - energy(latents - step * unit).sum()) / (
        2 * step
    )
    torch.testing.assert_close(change, slope.norm(), rtol=0.05, atol=1e-6)
    assert energy(latents - step * unit).sum() < energy(latents).sum()


def maps_of(*columns: int) -> torch.Tensor:
    """Attention of two tokens, one in each of two columns of an 8 x 8 layer."""
    maps = torch.zeros(1, 2, 8, 8)
    for token, column in enumerate(columns):
        maps[0, token, 2:6, column] = 0.25
    return maps


def test_attention_inside_of_its_box_costs_nothing_and_elsewhere_one():
    masks = torch.zeros(1, 2, 32, 32)
    masks[0, 0, 8:24, 4:8], masks[0, 1, 8:24, 24:28] = 1.0, 1.0
    terms = LayoutTermsConfig()
    inside = layout_energy(terms, [maps_of(1, 6)], [[(0,), (1,)]], masks)
    crossed = layout_energy(terms, [maps_of(6, 1)], [[(0,), (1,)]], masks)
    torch.testing.assert_close(inside, torch.zeros(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(crossed, torch.tensor([2.0]))
    even = layout_energy(terms, [torch.ones(1, 2, 8, 8)], [[(0,), (1,)]], masks)
    torch.testing.assert_close(even, torch.tensor([2 * (1 - 1 / 16) ** 2]))


def test_centroid_size_and_shape_are_differences_to_the_box():
    masks = torch.zeros(1, 1, 8, 8)
    masks[0, 0, 2:6, 6] = 1.0
    found = {
        name: float(
            layout_energy(
                LayoutTermsConfig(inside=0.0, **{name: 1.0}), [maps_of(1)], [[(0,)]], masks
            )
        )
        for name in ("centroid", "size", "shape")
    }
    assert found["centroid"] == pytest.approx(5 / 7, abs=1e-3)
    assert found["size"] == pytest.approx(0.0, abs=1e-3)
    assert found["shape"] == pytest.approx(8 / 64, abs=1e-3)


def test_an_object_that_is_not_seen_asks_for_nothing():
    masks = torch.zeros(2, 1, 8, 8)
    masks[1, 0, 2:6, 6] = 1.0
    energy = layout_energy(ALL_TERMS, [torch.rand(2, 2, 8, 8)], [[(0, 1)]] * 2, masks)
    assert energy[0] == 0.0
    assert energy[1] > 0.0


def test_words_of_an_object_are_found_without_its_article(prior, objects):
    duck, mushroom = object_tokens(prior, SCENE, objects)
    length = len(prior.text.towers[0].tokenizer(SCENE).input_ids)
    assert duck
    assert mushroom
    assert not set(duck) & set(mushroom)
    assert max(mushroom) == length - 2, "the prompt's last word"
    whole = objects_of(prior, red_duck=LEFT)
    assert object_tokens(prior, SCENE, whole) == (duck,)


@pytest.mark.parametrize(
    ("scene", "phrases", "words"),
    [
        ("a duck left of a red duck", ["a duck", "a red duck"], [[1], [5, 6]]),
        ("a duck left of a red duck", ["a red duck", "a duck"], [[5, 6], [1]]),
        ("a red duck left of a duck", ["a duck", "a red duck"], [[6], [1, 2]]),
        ("a duck left of a duck", ["a duck", "the duck"], [[1], [5]]),
        ("a duck, a red duck, a big red duck", ["duck", "red duck", "big red duck"],
         [[1], [3, 4], [6, 7, 8]]),
        ("a red duck on a duck house", ["a red duck"], [[1, 2]]),
    ],
)  # fmt: skip
def test_objects_with_a_noun_in_common_have_an_occurrence_each(prior, scene, phrases, words):
    objects = [LayoutObject(LEFT, prompts_of(prior, phrase)) for phrase in phrases]
    found = object_tokens(prior, scene, objects)
    prompt = tokenize_prompt(prior.text.towers[0].tokenizer, scene)
    expected = [tuple(t for word in own for t in prompt.tokens_of[word]) for own in words]
    assert found == tuple(expected)


def test_more_objects_than_occurrences_are_refused(prior):
    objects = [LayoutObject(box, prompts_of(prior, "a duck")) for box in (LEFT, RIGHT)]
    with pytest.raises(StudioError, match=r"'duck' names other objects wherever it stands"):
        object_tokens(prior, "a duck on grass", objects)
    part = [LayoutObject(LEFT, prompts_of(prior, text)) for text in ("a duck", "a red duck")]
    with pytest.raises(StudioError, match=r"Name it once more in the scene's prompt"):
        object_tokens(prior, SCENE, part)


def test_words_behind_what_the_encoder_reads_are_refused(prior):
    length = prior.text.towers[0].tokenizer.model_max_length
    far = " ".join(["red"] * length) + " duck"
    with pytest.raises(StudioError, match=r"'duck' .* lies behind the \d+ tokens"):
        object_tokens(prior, far, [LayoutObject(LEFT, prompts_of(prior, "a duck"))])


def test_words_that_are_not_there_and_templates_that_move_them_are_refused(prior, objects):
    with pytest.raises(StudioError, match="'green cat' is not in the prompt"):
        object_tokens(prior, SCENE, objects_of(prior, a_green_cat=LEFT))
    words = ViewWordsConfig(side="side view of {prompt}")
    moved = build_view_prompts(DirectionalPromptsConfig(words=words), prior, SCENE)
    with pytest.raises(StudioError, match="puts words before the prompt"):
        LayoutPrompts(LayoutGuidedConfig(), prior, moved, objects)


def test_levels_without_text_are_refused(prior, objects, latents):
    told = condition(prior, objects, levels=(7,))
    with pytest.raises(UnsupportedModel, match=r"levels are \[7\]"):
        told.energy_gradient(prior, latents, T, torch.arange(2))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"centroid is -1\.0 - expected 0 or more"):
        LayoutTermsConfig(centroid=-1.0)
    with pytest.raises(ValueError, match=r"min_t is 2\.0"):
        LayoutGuidedConfig(min_t=2.0)
    with pytest.raises(ValueError, match=r"scale is -1\.0"):
        LayoutGuidedConfig(scale=-1.0)
