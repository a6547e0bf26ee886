"""Which prompt guides which view."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from guidance.configs import (
    DirectionalPromptsConfig,
    InterpolatedPromptsConfig,
    PerpNegPromptsConfig,
    PlainPromptsConfig,
    ViewWordsConfig,
)
from guidance.prompts import ViewPrompts, build_view_prompts, view_texts
from guidance.views import VIEWS, azimuth_mix, direction_index
from image_tools.diffusion.loading import load_folder
from renderers.poses import wrap_deg

SIDE, FRONT, BACK, OVERHEAD = range(4)
EPS = 1e-3


@dataclass(frozen=True)
class Angles:
    """Camera angles only."""

    azimuth_deg: Tensor
    elevation_deg: Tensor


def _angles(*pairs: tuple[float, float]) -> Angles:
    azimuth, elevation = zip(*pairs)
    return Angles(torch.tensor(azimuth), torch.tensor(elevation))


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    """A pocket-like prior."""
    return load_folder(tiny_pipelines["pocket"], torch.device("cpu"))


def _direction(azimuth: float, elevation: float = 0.0, **config) -> int:
    cameras = _angles((azimuth, elevation))
    settings = DirectionalPromptsConfig(**config)
    return int(direction_index(cameras.azimuth_deg, cameras.elevation_deg, settings))


@pytest.mark.parametrize("turn", [0.0, 360.0, -720.0])
@pytest.mark.parametrize(
    ("azimuth", "direction"),
    [
        (0.0, FRONT), (45.0 - EPS, FRONT), (-45.0 + EPS, FRONT),
        (45.0, SIDE), (-45.0, SIDE), (90.0, SIDE), (-90.0, SIDE), (135.0, SIDE), (-135.0, SIDE),
        (135.0 + EPS, BACK), (-135.0 - EPS, BACK), (180.0, BACK), (-180.0, BACK),
    ],
)  # fmt: skip
def test_directions_change_exactly_at_the_thresholds(azimuth, direction, turn):
    assert _direction(azimuth + turn) == direction


def test_overhead_overrides_every_azimuth_above_its_threshold():
    for azimuth in (0.0, 90.0, 180.0):
        assert _direction(azimuth, 60.0) != OVERHEAD
        assert _direction(azimuth, 60.0 + EPS) == OVERHEAD


def test_thresholds_are_settings():
    assert _direction(40.0, front_deg=30.0) == SIDE
    assert _direction(145.0, back_deg=30.0) == SIDE
    assert _direction(0.0, 31.0, overhead_deg=30.0) == OVERHEAD
    assert _direction(100.0, front_deg=120.0, back_deg=120.0) == BACK, "later directions override"


def test_wrapped_angles_lie_in_one_turn():
    angles = torch.tensor([0.0, 180.0, -180.0, 190.0, 540.0, -190.0])
    assert wrap_deg(angles).tolist() == [0.0, -180.0, -180.0, -170.0, -180.0, 170.0]


def test_prompts_are_worded_by_the_templates():
    words = ViewWordsConfig(front="{prompt} seen from the front")
    one_half = [
        "a {weird} duck, side view",
        "a {weird} duck seen from the front",
        "a {weird} duck, back view",
        "a {weird} duck, overhead view",
    ]
    assert view_texts(words, "a {weird} duck") == one_half * 2
    with pytest.raises(ValueError, match=r"words.back is 'from behind'. Put \{prompt\} into it"):
        ViewWordsConfig(back="from behind")


@pytest.mark.parametrize(
    "config",
    [
        PlainPromptsConfig(),
        DirectionalPromptsConfig(),
        InterpolatedPromptsConfig(),
        PerpNegPromptsConfig(),
    ],
)
def test_every_kind_gives_one_row_per_view(prior, config):
    prompts = build_view_prompts(config, prior, "red duck", "blurry")
    assert isinstance(prompts, ViewPrompts)
    condition = prompts.at(_angles((0.0, 0.0), (90.0, 10.0), (10.0, 80.0)))
    assert len(condition.positive) == 3
    assert torch.equal(condition.uncond.tokens, prior.encode_prompt(["blurry"]).tokens)


def test_directional_rows_are_the_encoded_view_prompts(prior):
    prompts = build_view_prompts(DirectionalPromptsConfig(), prior, "red duck")
    condition = prompts.at(_angles((180.0, 0.0), (0.0, 0.0), (0.0, 70.0), (90.0, 0.0)))
    texts = [f"red duck, {VIEWS[i]} view" for i in (BACK, FRONT, OVERHEAD, SIDE)]
    assert torch.equal(condition.positive.tokens, prior.encode_prompt(texts).tokens)


@pytest.mark.parametrize(
    "config", [DirectionalPromptsConfig, InterpolatedPromptsConfig, PerpNegPromptsConfig]
)
def test_left_and_right_sides_have_words_of_their_own_where_they_are_given(prior, config):
    words = ViewWordsConfig(left="{prompt}, left side view", right="{prompt}, right side view")
    prompts = build_view_prompts(config(words=words), prior, "red duck")
    angles = _angles((90.0, 0.0), (-90.0, 0.0), (270.0, 0.0), (450.0, 0.0))
    texts = [f"red duck, {side} side view" for side in ("left", "right", "right", "left")]
    expected = prior.encode_prompt(texts).tokens
    assert torch.allclose(prompts.at(angles).positive.tokens, expected, atol=1e-6)


def test_perp_neg_denies_the_side_by_the_words_of_the_half_it_looks_from(prior):
    words = ViewWordsConfig(left="{prompt}, left side view", right="{prompt}, right side view")
    prompts = build_view_prompts(PerpNegPromptsConfig(words=words), prior, "red duck")
    condition = prompts.at(_angles((120.0, 0.0), (-120.0, 0.0)))
    texts = ["red duck, left side view", "red duck, front view"]
    texts += ["red duck, right side view", "red duck, front view"]
    assert torch.equal(condition.negatives.tokens, prior.encode_prompt(texts).tokens)


def test_plain_prompt_has_no_view_words(prior):
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "red duck")
    tokens = prompts.at(_angles((0.0, 0.0), (180.0, 0.0))).positive.tokens
    assert torch.equal(tokens, prior.encode_prompt(["red duck", "red duck"]).tokens)


@pytest.mark.parametrize(
    ("azimuth", "near", "far", "closeness"),
    [
        (0.0, FRONT, SIDE, 1.0),
        (30.0, FRONT, SIDE, 2 / 3),
        (-30.0, FRONT, SIDE, 2 / 3),
        (90.0, SIDE, BACK, 1.0),
        (-120.0, SIDE, BACK, 2 / 3),
        (180.0, SIDE, BACK, 0.0),
    ],
)
def test_azimuth_mix(azimuth, near, far, closeness):
    mix = azimuth_mix(torch.tensor([azimuth]))
    assert (int(mix.near), int(mix.far)) == (near, far)
    assert float(mix.closeness) == pytest.approx(closeness, abs=1e-6)


def test_interpolated_prompts_are_linear_in_azimuth_and_continuous(prior):
    prompts = build_view_prompts(InterpolatedPromptsConfig(), prior, "red duck")
    side, front, back, overhead = (prompts.views.tokens[i] for i in range(4))
    angles = [(0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (45.0, 0.0), (-135.0, 0.0), (45.0, 61.0)]
    tokens = prompts.at(_angles(*angles)).positive.tokens
    expected = [front, side, back, (front + side) / 2, (side + back) / 2, overhead]
    torch.testing.assert_close(tokens, torch.stack(expected))
    below, above = prompts.at(_angles((89.999, 0.0), (90.001, 0.0))).positive.tokens
    torch.testing.assert_close(below, above, atol=1e-3, rtol=1e-3)
