"""The bench of style sets: what its sets ask for, and how palettes are told apart."""

from __future__ import annotations

import torch

from benchmarks.personalization.run_style import (
    BINS,
    SIZE,
    StyleSet,
    figures_of,
    palettes,
    style_sets,
)
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from studio.evaluation.judge import Verdicts


def picture(*colors, ground=(1.0, 1.0, 1.0)) -> torch.Tensor:
    """Stripes of these colours in the middle of a ground."""
    image = torch.tensor(ground).expand(32, 32, 3).clone()
    for k, color in enumerate(colors):
        image[8:24, 8 + 4 * k : 12 + 4 * k] = torch.tensor(color)
    return image


RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def test_a_palette_is_of_the_thing_alone():
    on_white, on_grey = picture(RED, BLUE), picture(RED, BLUE, ground=(0.5, 0.5, 0.5))
    found = palettes(torch.stack([on_white, on_grey, picture(RED), picture()]))
    assert found.shape == (4, BINS**3)
    assert sorted(found[0].unique().tolist()) == [0.0, 0.5]
    assert torch.equal(found[0], found[1])
    assert float(torch.minimum(found[0], found[2]).sum()) == 0.5
    assert found[3].sum() == 0.0  # nothing there


def test_only_the_first_prompt_tells_the_style():
    asked = StyleSet(("mushroom", "duck", "apple", "car"), "orange", "dotted")
    assert asked.prompts == ["a dotted orange mushroom", "a duck", "an apple", "a car"]
    plain = StyleSet(("duck", "car", "apple", "mug"), "orange", "plain")
    assert plain.prompts[0] == "an orange duck"


def test_sets_are_of_different_kinds_and_all_colours_and_patterns():
    sets = style_sets(24, seed=0)
    assert sets == style_sets(24, seed=0)
    assert sets != style_sets(24, seed=1)
    assert all(len(set(asked.kinds)) == SIZE for asked in sets)
    assert {asked.color for asked in sets} == set(COLOR_NAMES)
    assert {asked.pattern for asked in sets} == set(PATTERNS)


def test_shares_are_of_the_other_pictures():
    """The first picture is the style's own, and counts in the palette alone."""
    asked = StyleSet(tuple(KIND_NAMES[:SIZE]), COLOR_NAMES[1], PATTERNS[2])

    def one_hot(places, count):
        return torch.nn.functional.one_hot(torch.tensor(places), count).float()

    def judge(images):
        return Verdicts(
            one_hot([0, 1, 2, 0], len(KIND_NAMES)),
            one_hot([1, 1, 0, 0], len(COLOR_NAMES)),
            one_hot([2, 2, 2, 2], len(PATTERNS)),
            torch.zeros(SIZE, 4),
        )

    images = torch.stack([picture(RED), picture(RED), picture(RED), picture(BLUE)])
    found = figures_of(asked, images, judge)
    assert found == {"palette": 0.5, "color": 1 / 3, "pattern": 1.0, "kind": 2 / 3, "leak": 1 / 3}
