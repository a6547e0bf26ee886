"""Exact edits of toybox scenes: one thing changes, the words say which, nothing is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, KINDS, PATTERNS
from scenes.toybox.samples import SampleConfig
from scenes.toybox.splits import is_held_out
from studio.errors import ConfigError
from studio.training import pair_cache
from studio.training.pair_cache import PairCache, PairConfig, render_pairs
from studio.training.pairs import EDITS, EditSampler, ToyEdit

CONFIG = PairConfig(edits=6, samples=SampleConfig(image_size=32))


def edits(name: str, count: int = 25, **settings) -> list[ToyEdit]:
    """Edits of one kind."""
    sampler = EditSampler(SampleConfig(pairs=0.4, **settings), (name,))
    return [sampler.edit(np.random.default_rng([7, k])) for k in range(count)]


def quiet(*_: object) -> None:
    """A log that nobody reads."""


@pytest.mark.parametrize("name", EDITS)
def test_all_objects_before_and_after_are_training_combinations(name: str) -> None:
    for edit in edits(name):
        for spec in (edit.old, edit.new):
            assert not is_held_out(spec.kind, spec.color), spec
            assert spec.individual % 2 == 0, spec


@pytest.mark.parametrize("name", ["recolor", "pattern"])
def test_recolouring_and_patterns_keep_every_vertex(name: str) -> None:
    for edit in edits(name):
        assert (edit.old.kind, edit.old.individual) == (edit.new.kind, edit.new.individual)
        for before, after in zip(edit.before.objects, edit.after.objects, strict=True):
            assert np.array_equal(before.vertices, after.vertices)
        assert np.array_equal(edit.before.offsets, edit.after.offsets)


def test_recolouring_says_the_new_colour_and_keeps_the_pattern() -> None:
    for edit in edits("recolor"):
        assert edit.old.color != edit.new.color
        assert edit.old.pattern == edit.new.pattern
        assert edit.instruction.split()[-1] == edit.new.color


def test_patterns_change_to_what_is_said_and_keep_the_colour() -> None:
    marks = {"plain": ("plain", "remove", "without"), "striped": ("striped", "stripes")}
    marks |= {"dotted": ("dotted", "dots"), "checked": ("checked", "checks")}
    for edit in edits("pattern"):
        assert edit.old.pattern != edit.new.pattern
        assert edit.old.color == edit.new.color
        assert any(mark in edit.instruction for mark in marks[edit.new.pattern])


def test_replacing_keeps_colour_and_pattern_and_stands_on_the_same_ground() -> None:
    several = 0
    for edit in edits("replace"):
        assert edit.old.kind != edit.new.kind
        assert (edit.old.color, edit.old.pattern) == (edit.new.color, edit.new.pattern)
        assert edit.instruction.endswith(KINDS[edit.new.kind].noun)
        if len(edit.before.objects) == 1:
            continue
        several += 1
        grounds = [
            [o.vertices[:, 2].min() * s + t[2] for o, t, s in zip(x.objects, x.offsets, x.scales)]
            for x in (edit.before, edit.after)
        ]
        assert grounds[0] == pytest.approx(grounds[1])
    assert several > 3


@pytest.mark.parametrize("name", ["add", "remove"])
def test_one_object_more_or_less_and_the_other_stays_where_it_is(name: str) -> None:
    for edit in edits(name):
        few, many = (edit.before, edit.after) if name == "add" else (edit.after, edit.before)
        assert (len(few.objects), len(many.objects)) == (1, 2)
        matches = [
            np.array_equal(few.objects[0].vertices, other.vertices)
            and np.array_equal(few.offsets[0], offset)
            and few.scales[0] == scale
            for other, offset, scale in zip(many.objects, many.offsets, many.scales, strict=True)
        ]
        assert any(matches)


def test_adding_says_where_relative_to_what_is_there() -> None:
    """Left of is towards -y, on top of towards +z: on whichever side the words name."""
    axes = {"left of": (1, -1), "right of": (1, 1), "in front of": (0, 1), "behind": (0, -1)}
    axes["on top of"] = (2, 1)
    for edit in edits("add", 40):
        kept = next(
            k for k, t in enumerate(edit.after.offsets) if np.array_equal(t, edit.before.offsets[0])
        )
        move = edit.after.offsets[1 - kept] - edit.after.offsets[kept]
        (relation,) = [words for words in axes if f" {words} " in edit.instruction]
        axis, sign = axes[relation]
        assert np.sign(move[axis]) == sign, edit.instruction
        assert abs(move[axis]) == pytest.approx(np.abs(move).max(), rel=0.6)


def test_an_object_beside_one_of_its_kind_is_named_by_more_than_its_noun() -> None:
    seen = 0
    sampler = EditSampler(SampleConfig(pairs=1.0), ("remove",))
    for k in range(120):
        edit = sampler.edit(np.random.default_rng([8, k]))
        counts = [len(o.vertices) for o in edit.before.objects]
        if edit.instruction.split("the ")[-1].split()[0] in (*COLOR_NAMES, *PATTERNS):
            seen += 1
            assert len(counts) == 2
    assert 0 < seen < 20, "about one pair in 32"


def test_evaluation_edits_show_individuals_that_training_never_sees() -> None:
    for name in ("recolor", "replace"):
        for edit in edits(name, 5, evaluation=True):
            assert edit.old.individual % 2 == edit.new.individual % 2 == 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> PairCache:
    """Six rendered edits."""
    return render_pairs(tmp_path_factory.mktemp("pairs"), CONFIG, log=quiet)


def test_rendered_pairs_differ_and_share_the_background(cache: PairCache) -> None:
    before, after = cache.images[::2].astype(int), cache.images[1::2].astype(int)
    assert (np.abs(before - after).max((1, 2, 3)) > 0).all()
    corners = np.s_[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.array_equal(before[corners], after[corners])


def test_both_rows_of_a_pair_have_its_instruction_and_labels_tell_the_change(cache) -> None:
    assert len(cache) == 12
    assert cache.captions[::2] == cache.captions[1::2]
    assert cache.labels.shape == (6, 2, 3)
    changed = {"recolor": 1, "pattern": 2, "replace": 0}
    for name, (old, new), said in zip(cache.names, cache.labels, cache.captions[::2], strict=True):
        if name in changed:
            assert (old != new).nonzero()[0].tolist() == [changed[name]], said
        else:
            assert np.array_equal(old, new)
        assert new[0] < len(KIND_NAMES)


def test_rendering_resumes_to_the_same_pairs(cache: PairCache, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pair_cache, "CHUNK", 4)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt(line)

    with pytest.raises(KeyboardInterrupt, match="edits 4/6"):
        render_pairs(tmp_path, CONFIG, log=interrupt)
    assert len(PairCache(tmp_path)) == 8
    resumed = render_pairs(tmp_path, CONFIG, log=quiet)
    assert np.array_equal(resumed.images, cache.images)
    assert resumed.captions == cache.captions
    assert np.array_equal(resumed.labels, cache.labels)


def test_pairs_of_other_settings_are_refused(tmp_path: Path) -> None:
    small = SampleConfig(image_size=8)
    render_pairs(tmp_path, PairConfig(edits=1, samples=small), log=quiet)
    with pytest.raises(ConfigError, match=r"holds pairs of other settings. Name another folder"):
        render_pairs(tmp_path, PairConfig(edits=1, seed=2, samples=small), log=quiet)
