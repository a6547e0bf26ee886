"""Wrong captions of two objects: exchanged looks, kinds and places, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from scenes.toybox.captions import plain_caption
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.samples import SampleConfig, ToySampler
from scenes.toybox.scene import SceneSpec
from studio.training.contrast_bindings import WrongBindings, exchanged, read_pair


def test_two_objects_exchange_looks_kinds_and_places():
    assert exchanged("a striped red mug left of a blue house, front view") == [
        "a blue house left of a striped red mug, front view",
        "a blue mug left of a striped red house, front view",
        "a striped red house left of a blue mug, front view",
    ]


def test_what_exchanges_nothing_is_not_wrong():
    assert exchanged("a red mug behind a red mug") == []
    assert exchanged("a red mug behind a blue mug") == ["a blue mug behind a red mug"]
    assert exchanged("a red mug on top of a red house") == ["a red house on top of a red mug"]


@pytest.mark.parametrize(
    "caption", ["a red mug", "a red mug, front view", "", "a cat behind a dog"]
)
def test_captions_of_other_things_have_no_wrong_ones(caption: str):
    assert exchanged(caption) == []


def test_every_caption_of_two_objects_is_read_back_as_it_was_written():
    sampler = ToySampler(SampleConfig(pairs=1.0, caption_view=0.0))
    for k in range(200):
        scene = sampler.scene(np.random.default_rng(k))
        objects, relation, view = read_pair(plain_caption(scene))
        plain = tuple(ObjectSpec(o.kind, o.color, o.pattern) for o in scene.objects)
        assert (objects, (relation,), view) == (plain, scene.relations, "")


def test_wrong_captions_have_the_words_of_the_right_one():
    scene = SceneSpec(
        (ObjectSpec("ice_cream", "pink", "dotted"), ObjectSpec("cactus", "orange")), ("behind",)
    )
    right = plain_caption(scene) + ", back view"

    def words(caption: str) -> list[str]:
        told = caption.replace(",", "").split()
        return sorted(word for word in told if word not in ("a", "an"))

    for wrong in exchanged(right):
        assert wrong != right
        assert words(wrong) == words(right)


def test_only_rows_of_two_different_objects_are_drawn():
    captions = ["a red mug", "a red mug behind a blue house", "a red mug behind a red mug"]
    bindings = WrongBindings(captions)
    rows, wrong = bindings.draw(np.random.default_rng(0), 30)
    assert rows.tolist() == [1] * 30
    assert set(wrong) == set(exchanged(captions[1]))
    with pytest.raises(ValueError, match=r"contrast\.bindings to 0"):
        WrongBindings(["a red mug"])
