"""Where words stand in a prompt."""

from __future__ import annotations

import pytest

from image_tools.editing.phrases import bare_word, phrase_starts

PROMPT = 'A red dog, beside "another red dog" and a Dog-house.'


@pytest.mark.parametrize(
    ("phrase", "starts"),
    [
        ("dog", [2, 6]),
        ("red dog", [1, 5]),
        ("DOG.", [2, 6]),
        ("cat", []),
        ("", []),
        ("red red", []),
    ],
)
def test_phrases_are_found_each_time_without_case_and_punctuation(phrase, starts):
    assert phrase_starts(PROMPT.split(), phrase) == starts


def test_inner_punctuation_is_part_of_a_word_and_lonely_punctuation_stays():
    assert bare_word("(Dog-house),") == "dog-house"
    assert bare_word("...") == "..."
