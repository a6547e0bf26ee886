"""Pairs of toybox scenes and other views of their objects: boxes, references, words, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.editing.phrases import phrase_starts
from scenes.toybox.samples import SampleConfig
from scenes.toybox.splits import is_held_out
from studio.training.reference_pairs import (
    MARGIN,
    ReferencePair,
    ReferencePairConfig,
    ReferencePairs,
    mask_box,
    subject_batch,
    subject_batches,
)

SMALL = ReferencePairConfig(samples=SampleConfig(image_size=48), reference_size=32)
DRAWS = 14


@pytest.fixture(scope="module")
def pairs() -> list[ReferencePair]:
    """A few pairs."""
    source = ReferencePairs(SMALL)
    return [source.pair(np.random.default_rng([3, k])) for k in range(DRAWS)]


def test_scenes_have_one_to_four_subjects_of_the_training_split(pairs):
    assert {len(pair.phrases) for pair in pairs} >= {1, 2, 3}
    for pair in pairs:
        assert 1 <= len(pair.phrases) <= 4
        assert len(pair.phrases) == len(pair.boxes) == len(pair.references) == len(pair.objects)
        for item in pair.objects:
            assert not is_held_out(item.kind, item.color)
            assert item.individual % 2 == 0


def test_boxes_are_exactly_around_what_is_seen_of_a_subject(pairs):
    for pair in pairs:
        for k, (left, top, right, bottom) in enumerate(pair.boxes * 48):
            rows, columns = np.nonzero(pair.instances == k + 1)
            assert (columns.min(), columns.max() + 1) == (left, right)
            assert (rows.min(), rows.max() + 1) == (top, bottom)
            assert len(rows) >= SMALL.least_area * 48 * 48


def test_captions_have_every_phrase_and_tell_colours_in_some(pairs):
    told = 0
    for pair in pairs:
        for phrase, item in zip(pair.phrases, pair.objects, strict=True):
            assert phrase_starts(pair.caption.split(), phrase), (pair.caption, phrase)
            told += item.color in phrase
            assert (item.color in pair.caption) >= (item.color in phrase)
    assert 0 < told < sum(len(pair.phrases) for pair in pairs)


def test_references_are_other_views_on_backgrounds_of_one_colour(pairs):
    whites = blacks = 0
    low, high = SMALL.turned_deg
    for pair in pairs:
        assert (np.abs(pair.turned_deg) >= low).all()
        assert (np.abs(pair.turned_deg) <= high).all()
        for image in pair.references:
            corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
            assert np.ptp(corners, axis=0).max() < 1e-6
            whites += bool((corners > 0.9999).all())
            blacks += bool((corners == 0.0).all())
            subject = mask_box(np.abs(image - corners[0]).max(-1) > 0.03)
            longest = max(subject[2] - subject[0], subject[3] - subject[1])
            assert longest == pytest.approx(1.0 / (1.0 + 2.0 * MARGIN), abs=0.1)
    assert whites > 2
    assert blacks > 2


def test_a_pair_depends_on_its_generator_alone(pairs):
    again = ReferencePairs(SMALL).pair(np.random.default_rng([3, 1]))
    assert again.caption == pairs[1].caption
    assert np.array_equal(again.target, pairs[1].target)
    assert np.array_equal(again.references, pairs[1].references)
    assert not np.array_equal(pairs[0].target, pairs[1].target)


def test_batches_are_padded_with_black_images_and_empty_boxes(pairs):
    batch = subject_batch(pairs[:5], subjects=4)
    assert batch.references.shape == (5, 4, 32, 32, 3)
    for row, pair in enumerate(pairs[:5]):
        count = len(pair.phrases)
        assert batch.phrases[row] == (*pair.phrases, *[""] * (4 - count))
        assert batch.captions[row] == pair.caption
        assert not batch.boxes[row, count:].any()
        assert not batch.references[row, count:].any()
        np.testing.assert_allclose(batch.boxes[row, :count], pair.boxes, atol=1e-6)
        np.testing.assert_allclose(batch.references[row, :count], pair.references, atol=1e-6)
    most = max(pairs, key=lambda pair: len(pair.phrases))
    with pytest.raises(ValueError, match=rf"a pair has {len(most.phrases)} subjects, and 1 fit"):
        subject_batch([most], subjects=1)


def test_a_trainers_batch_depends_on_its_generator_alone():
    batches = subject_batches(ReferencePairs(SMALL), rows=2)
    first, again = (batches(k, torch.Generator().manual_seed(9)) for k in (0, 1))
    other = batches(0, torch.Generator().manual_seed(10))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.references, again.references)
    assert first.images.shape == (2, 48, 48, 3)
    assert not torch.equal(first.images, other.images)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"counts are \[0.0, 0.0, 0.0, 0.0\]"):
        ReferencePairConfig(counts=(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"turned_deg is \[0.0, 90.0\]"):
        ReferencePairConfig(turned_deg=(0.0, 90.0))
