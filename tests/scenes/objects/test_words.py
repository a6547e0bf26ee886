"""Colour words, nouns, captions and splits."""

from __future__ import annotations

import numpy as np
import pytest

from scenes.objects.captions import caption, plain_caption
from scenes.objects.colors import RECOLORS, WORDS, color_shares, color_words
from scenes.objects.naming import BY_KEY, BY_NAME, is_plural
from scenes.objects.splits import SUBJECT_SOURCES, assign_splits
from scenes.toybox.palette import COLORS


def word_of(rgb: tuple[float, float, float]) -> str:
    """The word for one colour."""
    return WORDS[int(color_words(np.array([rgb]))[0])]


@pytest.mark.parametrize("palette", [COLORS, RECOLORS], ids=["toybox", "objects"])
def test_painted_colours_are_called_by_their_names(palette: dict) -> None:
    assert {name: word_of(rgb) for name, rgb in palette.items()} == {name: name for name in palette}


@pytest.mark.parametrize("shade", [0.75, 0.9, 1.0])
@pytest.mark.parametrize("name", ["red", "green", "blue", "yellow"])
def test_shading_does_not_change_the_word(name: str, shade: float) -> None:
    assert word_of(tuple(shade * np.array(COLORS[name]))) == name


def test_greys_run_from_black_to_white() -> None:
    words = [word_of((v, v, v)) for v in np.linspace(0, 1, 21)]
    assert words[0] == "black"
    assert words[-1] == "white"
    assert [w for k, w in enumerate(words) if k == 0 or words[k - 1] != w] == [
        "black",
        "grey",
        "white",
    ]


def test_shares_follow_the_weights() -> None:
    rgb = np.array([COLORS["red"], COLORS["blue"], COLORS["blue"]])
    assert color_shares(rgb) == pytest.approx({"blue": 2 / 3, "red": 1 / 3})
    assert color_shares(rgb, np.array([8.0, 1.0, 1.0])) == pytest.approx({"red": 0.8, "blue": 0.2})
    assert color_shares(rgb[:0]) == {}


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        *(("sneakers", True), ("scissors", True), ("french fries", True), ("keys", True)),
        *(("drinking glass", False), ("bus", False), ("cactus", False), ("vase of flowers", False)),
        *(("table with tablecloth", False), ("bowl with fruits", False), ("sunglasses", True)),
        *(("table on trestles", False), ("abacus", False), ("apples", True)),
    ],
)
def test_plurals_take_no_article(noun: str, plural: bool) -> None:
    assert is_plural(noun) == plural


def test_captions_have_articles_and_colours() -> None:
    assert plain_caption("armchair") == "an armchair"
    assert plain_caption("armchair", ("red",)) == "a red armchair"
    assert plain_caption("cat", ("black", "white")) == "a black and white cat"
    assert plain_caption("sneakers", ("orange",)) == "orange sneakers"


def test_random_captions_always_name_the_thing_and_the_view() -> None:
    rng = np.random.default_rng(0)
    texts = [caption("armchair", ("red",), "side view", rng) for _ in range(300)]
    assert all("armchair" in t and t.endswith(", side view") for t in texts)
    colored = np.mean(["red" in t for t in texts])
    assert 0.65 < colored < 0.85
    assert len(set(texts)) >= 8
    assert not any("  " in t or "{" in t for t in texts)
    assert not any(" a sneakers" in f" {caption('sneakers', (), None, rng)}" for _ in range(100))


def test_no_noun_is_a_brand() -> None:
    brands = ("ford", "apple", "playstation", "vw", "volkswagen", "peugeot", "renault", "yamaha")
    brands += ("chevrolet", "iphone", "imac", "ibook", "jacuzzi", "rubik", "thonet", "seat leon")
    nouns = [*BY_KEY.values(), *BY_NAME.values()]
    assert [n for n in nouns if any(b in n.split() for b in brands)] == []


def some_nouns() -> dict[str, str]:
    """A made-up pack of 400 objects of 200 nouns, with the real subjects."""
    nouns = {f"lib/{k}": f"thing {k // 2}" for k in range(400)}
    return nouns | {source: noun for noun, source in SUBJECT_SOURCES.items()}


def test_splits_have_their_shares_and_do_not_leak() -> None:
    nouns = some_nouns()
    splits = assign_splits(nouns)
    assert set(splits) == set(nouns)
    share = {s: list(splits.values()).count(s) / len(nouns) for s in set(splits.values())}
    assert share["held_out"] == pytest.approx(0.10, abs=0.01)
    assert share["subject"] == pytest.approx(0.05, abs=0.01)
    held_out = {nouns[s] for s, split in splits.items() if split == "held_out"}
    assert held_out.isdisjoint(nouns[s] for s, split in splits.items() if split != "held_out")
    trained = {nouns[s] for s, split in splits.items() if split == "train"}
    drawn = {nouns[s] for s, split in splits.items() if split == "subject"} - set(SUBJECT_SOURCES)
    assert drawn <= trained  # another object of the noun is trained on
    assert all(splits[source] == "subject" for source in SUBJECT_SOURCES.values())


def test_splits_do_not_depend_on_the_order() -> None:
    nouns = some_nouns()
    backwards = dict(reversed(nouns.items()))
    assert {s: v for s, v in assign_splits(nouns).items() if v == "held_out"} == {
        s: v for s, v in assign_splits(backwards).items() if v == "held_out"
    }


def test_toybox_nouns_are_never_held_out() -> None:
    nouns = {"a/1": "duck", "a/2": "rubber duck", **{f"b/{k}": f"thing {k}" for k in range(50)}}
    splits = assign_splits(nouns)
    assert splits["a/1"] == splits["a/2"] == "train"
