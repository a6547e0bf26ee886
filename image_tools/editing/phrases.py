"""Where words stand in a prompt, without torch: without regard to case and attached punctuation.

phrase_starts("A dog, and another dog.".split(), "dog")  # [1, 4]
"""

from __future__ import annotations

import string
from collections.abc import Sequence

__all__ = ["bare_word", "phrase_starts"]


def bare_word(word: str) -> str:
    """Without case and attached punctuation; a word of punctuation only stays."""
    return word.lower().strip(string.punctuation) or word


def phrase_starts(words: Sequence[str], phrase: str) -> list[int]:
    """Places of the first word of a word, or words in a row, each time that they occur."""
    wanted = [bare_word(part) for part in phrase.split()]
    have = [bare_word(part) for part in words]
    count = len(wanted)
    return [k for k in range(len(have)) if wanted and have[k : k + count] == wanted]
