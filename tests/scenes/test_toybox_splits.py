"""The train / held-out split, and the sampler that must respect it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from scenes.toybox.captions import view_word
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.samples import SampleConfig, ToySampler
from scenes.toybox.splits import N_INDIVIDUALS, combinations, is_held_out, sample_object


def test_the_split_is_fixed_for_ever() -> None:
    """Shipped weights were trained on one side of it, so it must not move."""
    held_out = combinations(held_out=True)
    assert len(held_out) == 46
    listed = ";".join(f"{kind}/{color}" for kind, color in sorted(held_out))
    digest = hashlib.sha256(listed.encode()).hexdigest()
    assert digest == "53d095e1558a856e79193755e065188b6acac52af6e82e53e4f36a1a7d546907"
    assert is_held_out("duck", "purple")


def test_the_sides_are_disjoint_and_complete() -> None:
    train, test = set(combinations(held_out=False)), set(combinations(held_out=True))
    assert not train & test
    assert train | test == {(k, c) for k in KIND_NAMES for c in COLOR_NAMES}


def test_every_kind_and_colour_is_seen_in_training() -> None:
    kinds, colors = zip(*combinations(held_out=False))
    assert set(kinds) == set(KIND_NAMES)
    assert set(colors) == set(COLOR_NAMES)


@pytest.mark.parametrize("held_out", [False, True])
def test_sampling_stays_on_its_side(held_out: bool) -> None:
    sampler = ToySampler(SampleConfig(held_out=held_out, pairs=0.5))
    rng = np.random.default_rng(1)
    objects = [obj for _ in range(2000) for obj in sampler.scene(rng).objects]
    assert {is_held_out(obj.kind, obj.color) for obj in objects} == {held_out}
    assert len(objects) == pytest.approx(3000, rel=0.05), "half of the scenes have two"


@pytest.mark.parametrize(("evaluation", "parity"), [(False, 0), (True, 1)])
def test_evaluation_sees_other_individuals_than_training(evaluation: bool, parity: int) -> None:
    sampler = ToySampler(SampleConfig(evaluation=evaluation))
    rng = np.random.default_rng(1)
    individuals = {obj.individual for _ in range(500) for obj in sampler.scene(rng).objects}
    assert {number % 2 for number in individuals} == {parity}
    assert max(individuals) < N_INDIVIDUALS


def test_most_objects_are_plain() -> None:
    rng = np.random.default_rng(0)
    pairs = combinations(held_out=False)
    patterns = [sample_object(rng, pairs, individual_parity=0).pattern for _ in range(3000)]
    assert patterns.count("plain") / 3000 == pytest.approx(0.7, abs=0.03)
    assert patterns.count("dotted") / 3000 == pytest.approx(0.1, abs=0.02)


def test_a_sample_is_what_it_says() -> None:
    sampler = ToySampler(SampleConfig(image_size=32))
    for seed in range(6):
        sample = sampler.sample(np.random.default_rng(seed))
        assert sample.rgb.shape == (32, 32, 3)
        assert sample.mask.shape == (32, 32)
        assert sample.mask.max() == 1.0
        assert 0.0 <= sample.rgb.min() <= sample.rgb.max() <= 1.0
        assert sample.view == view_word(sample.azimuth_deg, sample.elevation_deg)
        if " view" in sample.caption:
            word = sample.caption.rpartition(", ")[2]
            assert word.removeprefix("left ").removeprefix("right ") == sample.view


def test_the_same_seed_gives_the_same_sample() -> None:
    sampler = ToySampler(SampleConfig(image_size=24))
    first, second = (sampler.sample(np.random.default_rng([1, 7])) for _ in range(2))
    assert first.caption == second.caption
    assert first.scene == second.scene
    assert np.array_equal(first.rgb, second.rgb)


def test_pairs_are_seen_from_near_the_front() -> None:
    """There, left and right mean the same in the image as in the caption."""
    sampler = ToySampler(SampleConfig(image_size=8, pairs=1.0))
    rng = np.random.default_rng(0)
    assert all(abs(sampler.sample(rng).azimuth_deg) <= 35.0 for _ in range(20))
