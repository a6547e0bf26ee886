"""Captions that exchange the words of two objects, for lessons in who is what.

A denoiser of "a red mug left of a blue house" gets most of its loss right with a red thing, a blue
thing, a mug and a house, whichever is which. So the caption is compared with wrong ones, in which
the two have exchanged looks (colour and pattern), kinds or places, and no word is new.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from scenes.toybox.captions import plain_caption
from scenes.toybox.catalog import COLOR_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import RELATIONS, SceneSpec

__all__ = ["WrongBindings", "exchanged", "read_pair"]


class WrongBindings:
    """The rows of a cache whose captions name two different objects.

    Attributes:
        rows: their numbers, sorted.
        wrong: for each of them all captions with exchanged words.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        """Read ``captions``.

        Raises:
            ValueError: none names two different objects.
        """
        found = {row: exchanged(caption) for row, caption in enumerate(captions)}
        self.rows = np.array([row for row, wrong in found.items() if wrong])
        self.wrong = [found[row] for row in self.rows]
        if not len(self.rows):
            raise ValueError(
                "No caption names two different objects. Render pairs too, or set "
                "contrast.bindings to 0."
            )

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, list[str]]:
        """Rows, sorted, and a wrong caption of each."""
        chosen = np.sort(rng.integers(len(self.rows), size=count))
        return self.rows[chosen], [str(rng.choice(self.wrong[k])) for k in chosen]


def exchanged(caption: str) -> list[str]:
    """All captions in which the two objects of ``caption`` have exchanged something.

    Empty where it does not name two objects, or they differ in nothing but their places.
    """
    pair = read_pair(caption)
    if pair is None:
        return []
    (first, second), relation, view = pair
    looks = (_with_look_of(first, second), _with_look_of(second, first))
    kinds = (_with_look_of(second, first), _with_look_of(first, second))
    wrong = {told for told in (looks, kinds, (second, first)) if told != (first, second)}
    return sorted(plain_caption(SceneSpec(told, (relation,))) + view for told in wrong)


def read_pair(caption: str) -> tuple[tuple[ObjectSpec, ObjectSpec], str, str] | None:
    """Objects, relation and ", view" (or "") of a canonical caption of two; else None."""
    match = _pair_pattern().fullmatch(caption)
    if match is None:
        return None
    told = match.groupdict()
    kinds = {it.noun: kind for kind, it in KINDS.items()}
    first, second = (
        ObjectSpec(kinds[told[f"noun{k}"]], told[f"color{k}"], told[f"pattern{k}"] or "plain")
        for k in (0, 1)
    )
    return (first, second), told["relation"], told["view"] or ""


def _with_look_of(thing: ObjectSpec, other: ObjectSpec) -> ObjectSpec:
    return replace(thing, color=other.color, pattern=other.pattern)


@cache
def _pair_pattern() -> re.Pattern[str]:
    nouns = "|".join(re.escape(kind.noun) for kind in KINDS.values())
    patterns, colors = "|".join(PATTERNS), "|".join(COLOR_NAMES)
    first, second = (
        rf"an? ((?P<pattern{k}>{patterns}) )?(?P<color{k}>{colors}) (?P<noun{k}>{nouns})"
        for k in (0, 1)
    )
    relation = rf"(?P<relation>{'|'.join(RELATIONS)})"
    return re.compile(rf"{first} {relation} {second}(?P<view>, .+)?")
