"""Prompts and the toybox objects they name."""

from __future__ import annotations

import numpy as np
import pytest

from scenes.toybox.captions import caption
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec
from studio.evaluation.prompt_parsing import parse_prompt


@pytest.mark.parametrize(
    ("prompt", "kind", "color", "pattern"),
    [
        ("a purple duck", "duck", "purple", "plain"),
        ("A  Red\nMUSHROOM, front view", "mushroom", "red", "plain"),
        ("a blue table lamp", "lamp", "blue", "plain"),
        ("a round table in green", "table", "green", "plain"),
        ("a small polka-dot violet bunny", "rabbit", "purple", "dotted"),
        ("an orange cup with stripes", "mug", "orange", "striped"),
        ("a pink cupcake", "cupcake", "pink", "plain"),
        ("a 3d render of a checkered white ice cream cone", "ice_cream", "white", "checked"),
        ("a yellow cactus in a pot", "cactus", "yellow", "plain"),
        ("a black goldfish", "fish", "black", "plain"),
        ("brown teddy_bear", None, None, None),
    ],
)
def test_names_kind_color_and_pattern(prompt, kind, color, pattern):
    expected = None if kind is None else ObjectSpec(kind, color, pattern, 1)
    assert parse_prompt(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a small blue teapot left of a red house",
        "a car",
        "a red dragon",
        "a red and blue car",
        "a green lamp on the sofa",
        "a striped dotted red car",
        "a tabletop in red",
        "a redcar",
        "../../etc/passwd",
    ],
)
def test_says_nothing_where_there_is_no_single_true_object(prompt):
    assert parse_prompt(prompt) is None


def test_reads_every_caption_of_the_toybox():
    rng = np.random.default_rng(0)
    for kind in KIND_NAMES:
        for trial in range(12):
            spec = ObjectSpec(kind, COLOR_NAMES[trial % 10], PATTERNS[trial % 4])
            text = caption(SceneSpec((spec,)), "side view", rng)
            if spec.color not in text:  # a caption may leave the description out
                continue
            found = parse_prompt(text, individual=0)
            assert found == spec, text


def test_every_synonym_means_its_kind():
    for name, kind in KINDS.items():
        for word in (kind.noun, *kind.synonyms):
            assert parse_prompt(f"a red {word}").kind == name


def test_the_individual_is_passed_on():
    assert parse_prompt("a red car", individual=5).individual == 5
