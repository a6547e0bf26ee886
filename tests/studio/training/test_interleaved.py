"""Prompts with images among their words: marks where nouns are, images of what they mean."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from image_tools.personalization.kosmos_g_words import check_image_count, without_images
from scenes.toybox.captions import caption
from scenes.toybox.catalog import KIND_NAMES, KINDS
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.samples import SampleConfig
from scenes.toybox.scene import SceneSpec
from studio.training.interleaved import (
    InterleavedConfig,
    InterleavedSampler,
    cut_out,
    instruction_batches,
    noun_spans,
)

SMALL = InterleavedConfig(
    samples=SampleConfig(image_size=32, pairs=1.0), image_size=16, min_pixels=10, drop_caption=0.0
)
PAIR = SceneSpec((ObjectSpec("mug", "red"), ObjectSpec("house", "blue")), ("left of",))


def samples(config: InterleavedConfig, count: int = 4):
    sampler = InterleavedSampler(config)
    return [sampler.sample(np.random.default_rng([5, k])) for k in range(count)]


def test_spans_are_the_nouns_in_the_order_of_the_objects():
    said = "a red mug left of a blue house, front view"
    assert [said[slice(*span)] for span in noun_spans(said, PAIR)] == ["mug", "house"]
    synonym = "a coffee mug left of a cottage"
    assert [synonym[slice(*span)] for span in noun_spans(synonym, PAIR)] == [
        "coffee mug",
        "cottage",
    ]
    with pytest.raises(ValueError, match="'a blue house' does not name its mug"):
        noun_spans("a blue house", PAIR)


def test_every_caption_of_the_toybox_names_its_objects():
    rng = np.random.default_rng(0)
    for kind in KIND_NAMES:
        spec = SceneSpec((ObjectSpec(kind, "red", "striped"),))
        for _ in range(20):
            said = caption(spec, "left side view", rng)
            ((begin, end),) = noun_spans(said, spec)
            assert said[begin:end] in (KINDS[kind].noun, *KINDS[kind].synonyms)


def test_images_that_follow_their_nouns_leave_the_caption_as_it_was():
    for sample in samples(replace(SMALL, drop_noun=0.0)):
        check_image_count(sample.prompt, len(sample.images))
        assert without_images(sample.prompt) == sample.caption
        assert len(sample.images) == 0 or sample.prompt != sample.caption


def test_images_stand_in_the_place_of_their_nouns():
    for sample in samples(replace(SMALL, drop_noun=1.0)):
        check_image_count(sample.prompt, len(sample.images))
        nouns = [n for kind in KINDS.values() for n in (kind.noun, *kind.synonyms)]
        gap = "|".join(sorted(map(re.escape, nouns), key=len, reverse=True))
        pattern = re.escape(sample.prompt).replace("<i>", f"({gap})")
        assert re.fullmatch(pattern, sample.caption), (sample.prompt, sample.caption)


def test_a_caption_may_be_its_images_alone():
    for sample in samples(replace(SMALL, drop_caption=1.0), 2):
        assert sample.prompt == " ".join(["<i>"] * len(sample.images)) or not len(sample.images)


def test_what_is_hardly_seen_keeps_its_word():
    for sample in samples(replace(SMALL, min_pixels=10_000), 2):
        assert sample.prompt == sample.caption
        assert sample.images.shape == (0, 16, 16, 3)


def test_a_cut_out_is_the_square_around_the_object():
    rgb, mask = np.zeros((20, 20, 3)), np.zeros((20, 20), bool)
    mask[4:14, 12:20] = True
    rgb[mask] = (1.0, 0.0, 0.0)
    image = cut_out(rgb, mask, 11)
    assert image.shape == (11, 11, 3)
    assert np.array_equal(image[0, 5], [0.0, 0.0, 0.0])  # what is around it
    assert np.array_equal(image[5, 5], [1.0, 0.0, 0.0])
    assert np.array_equal(image[5, 10], [1.0, 1.0, 1.0])  # beyond the picture
    assert np.array_equal(cut_out(rgb, mask, 22)[10, 10], image[5, 5])


def test_cut_out_images_have_white_around_them():
    shown, bare = (
        [image for sample in samples(replace(SMALL, cut_out=share)) for image in sample.images]
        for share in (0.0, 1.0)
    )
    assert len(bare) == len(shown) > 0
    for image, whole in zip(bare, shown):
        assert (image >= whole - 0.05).mean() > 0.5
        assert image[0, 0].min() > 0.9


def test_batches_depend_on_their_generator_alone():
    batches = instruction_batches(InterleavedSampler(SMALL), 2)
    first, again, other = (
        batches(k, torch.Generator().manual_seed(seed)) for k, seed in ((0, 1), (7, 1), (0, 2))
    )
    assert first.targets.shape == (2, 32, 32, 3)
    assert first.prompts == again.prompts
    assert torch.equal(first.targets, again.targets)
    assert all(torch.equal(a, b) for a, b in zip(first.images, again.images))
    assert not torch.equal(first.targets, other.targets)
    for prompt, images in zip(first.prompts, first.images):
        check_image_count(prompt, len(images))


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match=r"drop_noun is 2.0 - expected 0 to 1"):
        InterleavedConfig(drop_noun=2.0)
    with pytest.raises(ValueError, match="image_size is 0 - expected at least 1"):
        InterleavedConfig(image_size=0)
