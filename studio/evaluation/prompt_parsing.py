"""From a prompt to the toybox object it names, if it names exactly one.

Understood are the captions of ``scenes.toybox.captions`` and everyday variations: synonyms, other
words for patterns and colours, articles, adjectives and view words around them. A prompt with two
kinds, two colours or a relation is a scene and has no single true object.

    parse_prompt("a small polka-dot violet bunny, front view")
    # ObjectSpec(kind="rabbit", color="purple", pattern="dotted")
"""

from __future__ import annotations

import re

from scenes.toybox.catalog import COLOR_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import RELATIONS

__all__ = ["parse_prompt"]

_COLOR_WORDS: dict[str, str] = {
    **{name: name for name in COLOR_NAMES},
    "scarlet": "red",
    "crimson": "red",
    "navy": "blue",
    "violet": "purple",
    "snow-white": "white",
    "jet-black": "black",
}
_PATTERN_WORDS: dict[str, str] = {
    **{name: name for name in PATTERNS},
    "stripy": "striped",
    "stripes": "striped",
    "spotted": "dotted",
    "polka dot": "dotted",
    "polka dots": "dotted",
    "polka-dot": "dotted",
    "checkered": "checked",
    "chequered": "checked",
}
_KIND_WORDS: dict[str, str] = {
    word: name for name, kind in KINDS.items() for word in (kind.noun, *kind.synonyms)
} | {name.replace("_", " "): name for name in KINDS}


def _take(text: str, words: dict[str, str]) -> tuple[set[str], str]:
    """The meanings of all ``words`` in ``text``, longest first, and the text without them."""
    found = set()
    for word in sorted(words, key=len, reverse=True):
        pattern = rf"(?<![\w-]){re.escape(word)}(?![\w-])"
        if re.search(pattern, text):
            found.add(words[word])
            text = re.sub(pattern, " ", text)
    return found, text


def parse_prompt(prompt: str, *, individual: int = 1) -> ObjectSpec | None:
    """The toybox object that ``prompt`` describes, or None.

    Args:
        prompt: free text.
        individual: seed of the shape; odd seeds are those that no training has seen.
    """
    text = " ".join(prompt.lower().split())
    if any(f" {relation} " in text for relation in RELATIONS):
        return None
    # Kinds first: "table lamp" is a lamp, and "goldfish" is no colour.
    kinds, text = _take(text, _KIND_WORDS)
    patterns, text = _take(text, _PATTERN_WORDS)
    colors, _ = _take(text, _COLOR_WORDS)
    if len(kinds) != 1 or len(colors) != 1 or len(patterns) > 1:
        return None
    pattern = next(iter(patterns), "plain")
    return ObjectSpec(kinds.pop(), colors.pop(), pattern, individual)
