"""The fixed splits of the pack, by the noun of an object and by the object itself.

* ``subject`` (5 %): single objects that no training ever sees, though other objects of the same
  noun may be trained on: what a personalized model must learn from photos. Twelve are chosen by
  hand, the rest by hash among nouns that have other objects.
* ``held_out`` (10 %): all objects of a noun, so that the noun itself is never trained on.
* ``train``: the rest.

Nouns of toybox kinds are always trained on, because the toybox would teach them anyway.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from scenes.toybox.catalog import KINDS

__all__ = ["SUBJECT_SOURCES", "Split", "assign_splits"]

Split = Literal["train", "held_out", "subject"]
HELD_OUT_SHARE = 0.10
SUBJECT_SHARE = 0.05

SUBJECT_SOURCES: dict[str, str] = {
    "dog": "Scopia/dog",
    "cat": "Scopia/cat",
    "teddy bear": "BlendSwap-CC-0/teddyBear",
    "sneakers": "Scopia/sneakers",
    "backpack": "BlendSwap-CC-BY/backpack",
    "toy train": "BlendSwap-CC-BY/toyTrain",
    "vase": "Scopia/jar",
    "beetle car": "KatorLegaz/VW-new-beetle",
    "hamburger": "BlendSwap-CC-BY/hamburger",
    "rabbit": "Scopia/rabbit",
    "biplane": "BlendSwap-CC-0/cartoon_biplane",
    "birthday cake": "Scopia/birthday_cake",
}
"""The twelve subjects and the models they are: all have a clear outline, colours of their own and,
where it matters, a front."""


def _rank(text: str) -> bytes:
    return hashlib.sha256(f"objects split/{text}".encode()).digest()


def assign_splits(nouns: Mapping[str, str]) -> dict[str, Split]:
    """The split of every object.

    Args:
        nouns: source id (library/key) to noun, for all objects of the pack.
    """
    splits: dict[str, Split] = dict.fromkeys(nouns, "train")
    chosen = set(SUBJECT_SOURCES.values())
    count = Counter(nouns.values())
    toys = {word for kind in KINDS.values() for word in (kind.noun, *kind.synonyms)}
    closed = toys | {nouns[source] for source in chosen if source in nouns}
    taken = 0
    for noun in sorted(count, key=_rank):
        # Whole nouns are taken while they fit, so that a large one cannot overshoot the share.
        fits = taken + count[noun] <= HELD_OUT_SHARE * len(nouns)
        if noun not in closed and not _shares_head(noun, toys) and fits:
            taken += count[noun]
            splits |= {source: "held_out" for source in nouns if nouns[source] == noun}
    common = [s for s in nouns if count[nouns[s]] > 1 and splits[s] == "train" and s not in chosen]
    more = max(0, round(SUBJECT_SHARE * len(nouns)) - len(chosen))
    # One object of a noun at most, so that others of it stay in training.
    by_noun = {nouns[s]: s for s in sorted(common, key=_rank)}
    drawn = sorted(by_noun.values(), key=_rank)[:more]
    return splits | {source: "subject" for source in (*chosen, *drawn) if source in nouns}


def _shares_head(noun: str, toys: set[str]) -> bool:
    """Whether the noun ends in a toybox word, as "toy car" does."""
    return noun.split()[-1] in toys
