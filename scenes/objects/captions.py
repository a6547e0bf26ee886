"""Captions of the pack's objects by grammar: paraphrases, omissions and view words.

The forms are the toybox's, so that a model trained on both sees one language.
"""

from __future__ import annotations

import numpy as np

from scenes.objects.naming import is_plural

__all__ = ["caption", "described", "plain_caption"]

_FORMS = (
    "{a} {n}",
    "{a} {n}",
    "{a} {n}",
    "{a} {n}",
    "{n}",
    "a 3d render of {a} {n}",
    "a 3d model of {a} {n}",
    "a picture of {a} {n}",
    "{a} {n}, 3d asset",
)
NO_COLOR_SHARE = 0.25


def described(noun: str, colors: tuple[str, ...]) -> str:
    """Colour words before the noun: "black and white cat"."""
    return f"{' and '.join(colors)} {noun}" if colors else noun


def _article(words: str, noun: str) -> str:
    if is_plural(noun):
        return ""
    return "an " if words[0] in "aeiou" else "a "


def plain_caption(noun: str, colors: tuple[str, ...] = ()) -> str:
    """The canonical caption, such as "a red armchair" or "red sneakers"."""
    words = described(noun, colors)
    return f"{_article(words, noun)}{words}"


def caption(noun: str, colors: tuple[str, ...], view: str | None, rng: np.random.Generator) -> str:
    """A random paraphrase; ``view`` (or None) is appended after a comma."""
    told = () if rng.random() < NO_COLOR_SHARE else colors
    words = described(noun, told)
    form = _FORMS[int(rng.integers(len(_FORMS)))]
    text = form.replace("{a} ", _article(words, noun)).replace("{n}", words)
    return text if view is None else f"{text}, {view}"
