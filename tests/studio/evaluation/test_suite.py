"""The fixed prompts, and choosing some of them."""

from __future__ import annotations

import pytest

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from studio.errors import ConfigError
from studio.evaluation.prompt_parsing import parse_prompt
from studio.evaluation.suite import SUITE, chosen, is_held_out_prompt


def test_the_suite_has_one_prompt_for_each_kind_and_eight_held_out_ones():
    assert sorted(item.kind for item in SUITE) == sorted(KIND_NAMES)
    assert {item.color for item in SUITE} == set(COLOR_NAMES)
    assert [item.held_out for item in SUITE] == [False] * 24 + [True] * 8


def test_every_prompt_of_the_suite_is_understood():
    for item in SUITE:
        spec = parse_prompt(item.prompt)
        assert (spec.kind, spec.color) == (item.kind, item.color)


@pytest.mark.parametrize("limit", [1, 2, 4, 8, 13, 31])
def test_a_choice_is_like_the_whole_and_part_of_every_larger_one(limit):
    some, more = chosen(limit), chosen(limit + 1)
    assert len(set(some)) == limit
    assert more[:limit] == some
    held_out = sum(item.held_out for item in some)
    assert abs(held_out - limit / 4) <= 0.75
    assert limit < 2 or held_out > 0


def test_all_prompts_are_chosen_once():
    assert sorted(chosen(), key=str) == sorted(SUITE, key=str)


@pytest.mark.parametrize("limit", [0, 33])
def test_a_choice_of_none_or_too_many_is_refused(limit):
    with pytest.raises(ConfigError, match="expected 1 to 32"):
        chosen(limit)


def test_prompts_tell_whether_they_are_held_out():
    assert is_held_out_prompt("a purple duck")
    assert not is_held_out_prompt("a green robot")
    assert not is_held_out_prompt("a prompt of another suite")
