"""Captions: grammar, articles, omissions, and the borders between view words."""

from __future__ import annotations

import re

import numpy as np
import pytest

from guidance.configs import DirectionalPromptsConfig
from scenes.toybox.captions import (
    FRONT_DEG,
    OVERHEAD_DEG,
    caption,
    plain_caption,
    spoken_view,
    view_word,
)
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec
from studio.config import load_scene


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "word"),
    [
        (0.0, 0.0, "front view"),
        (44.9, 0.0, "front view"),
        (-44.9, 0.0, "front view"),
        (45.0, 0.0, "side view"),
        (-90.0, 0.0, "side view"),
        (135.0, 0.0, "side view"),
        (135.1, 0.0, "back view"),
        (-135.1, 0.0, "back view"),
        (180.0, 0.0, "back view"),
        (-180.0, 0.0, "back view"),
        (360.0, 0.0, "front view"),
        (540.0, 0.0, "back view"),
        (-675.0, 0.0, "side view"),
        (0.0, 60.0, "front view"),
        (0.0, 60.1, "overhead view"),
        (180.0, 90.0, "overhead view"),
        (0.0, -30.0, "front view"),
    ],
)
def test_view_words_have_these_borders(azimuth_deg: float, elevation_deg: float, word: str) -> None:
    assert view_word(azimuth_deg, elevation_deg) == word


def test_captions_tell_most_left_sides_from_right_ones() -> None:
    """An object that faces +x shows its left side to a camera at +y, azimuth 90."""
    rng = np.random.default_rng(0)
    for azimuth_deg, sided in ((90.0, "left"), (-90.0, "right"), (270.0, "right"), (450.0, "left")):
        said = [spoken_view(azimuth_deg, 0.0, rng) for _ in range(200)]
        assert set(said) == {"side view", f"{sided} side view"}
        assert 0.6 < said.count(f"{sided} side view") / 200 < 0.9
    for azimuth_deg, elevation_deg in ((0.0, 0.0), (180.0, 10.0), (90.0, 80.0)):
        said = {spoken_view(azimuth_deg, elevation_deg, rng) for _ in range(20)}
        assert said == {view_word(azimuth_deg, elevation_deg)}


def test_guidance_draws_the_borders_where_the_captions_do() -> None:
    """Otherwise a view would be guided by words that the prior saw with other views."""
    config = DirectionalPromptsConfig()
    assert (config.front_deg, config.back_deg) == (FRONT_DEG, FRONT_DEG)
    assert config.overhead_deg == OVERHEAD_DEG
    for direction in ("front", "side", "back", "overhead"):
        assert getattr(config.words, direction) == f"{{prompt}}, {direction} view"


@pytest.mark.parametrize(
    "preset", ["pocket-dreamfusion", "pocket-magic3d", "pocket-prolificdreamer", "pocket-dreamflow"]
)
def test_pocket_presets_name_the_sides_as_the_captions_do(preset: str) -> None:
    words = load_scene(preset).config.view_prompts.words
    assert (words.left, words.right) == ("{prompt}, left side view", "{prompt}, right side view")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SceneSpec((ObjectSpec("duck", "purple"),)), "a purple duck"),
        (SceneSpec((ObjectSpec("mug", "orange"),)), "an orange mug"),
        (SceneSpec((ObjectSpec("ice_cream", "red", "dotted"),)), "a dotted red ice cream cone"),
        (
            SceneSpec((ObjectSpec("mug", "red"), ObjectSpec("house", "blue")), ("left of",)),
            "a red mug left of a blue house",
        ),
        (
            SceneSpec(
                (
                    ObjectSpec("car", "red"),
                    ObjectSpec("tree", "orange"),
                    ObjectSpec("duck", "pink"),
                ),
                ("behind", "on top of"),
            ),
            "a red car behind an orange tree on top of a pink duck",
        ),
    ],
)
def test_plain_captions(spec: SceneSpec, expected: str) -> None:
    assert plain_caption(spec) == expected


def all_captions() -> list[tuple[ObjectSpec, str]]:
    """Sixty random captions of each kind."""
    rng = np.random.default_rng(0)
    found = []
    for kind in KIND_NAMES:
        for k in range(60):
            color, pattern = COLOR_NAMES[k % 10], PATTERNS[k % 4]
            spec = ObjectSpec(kind, color, pattern)
            found.append((spec, caption(SceneSpec((spec,)), None, rng)))
    return found


def test_captions_name_the_kind_and_mostly_the_colour_and_pattern() -> None:
    complete = 0
    captions = all_captions()
    for spec, text in captions:
        kind = KINDS[spec.kind]
        assert any(noun in text for noun in (kind.noun, *kind.synonyms)), text
        described = spec.color in text and (spec.pattern == "plain" or spec.pattern in text)
        complete += described
        if not described:
            assert text in {f"{a} {n}" for a in ("a", "an") for n in (kind.noun, *kind.synonyms)}
    assert 0.94 < complete / len(captions) < 0.995, "about 3 % say only what it is"


def test_captions_are_paraphrased_with_correct_articles() -> None:
    texts = {text for _, text in all_captions()}
    assert len(texts) > 1000
    for text in texts:
        for article, word in re.findall(r"\b(an?) (\w+)", text):
            assert article == ("an" if word[0] in "aeiou" else "a"), text
        assert "  " not in text
        assert "{" not in text


def test_the_view_comes_last_after_a_comma() -> None:
    scene = SceneSpec((ObjectSpec("duck", "red"),))
    text = caption(scene, "back view", np.random.default_rng(0))
    assert text.endswith(", back view")
    assert caption(scene, None, np.random.default_rng(0)) == text.removesuffix(", back view")
