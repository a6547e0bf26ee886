"""Names of keypoints: the same for all individuals, and in an order that does not change."""

from __future__ import annotations

import numpy as np

from scenes.toybox.catalog import KINDS
from scenes.toybox.keypoints import keypoint_names
from scenes.toybox.objects import ObjectSpec, build_object


def test_all_individuals_have_the_keypoints_of_their_kind() -> None:
    names = keypoint_names()
    assert len(set(names)) == len(names)
    for name, kind in KINDS.items():
        first, *others = (
            [part.name for part in kind.build(np.random.default_rng(seed)) if part.name]
            for seed in range(4)
        )
        assert 0 < len(first) <= len(names)
        assert set(first) <= set(names)
        assert all(other == first for other in others), name


def test_an_objects_keypoints_are_the_centres_of_its_named_parts() -> None:
    duck = build_object(ObjectSpec("duck", "red"))
    assert list(duck.keypoints) == ["body", "head", "beak", "tail"]
    assert keypoint_names()[:4] == ("body", "head", "beak", "tail")
    assert duck.keypoints["beak"][0] > duck.keypoints["head"][0] > duck.keypoints["tail"][0]
