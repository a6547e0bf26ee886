"""The editing benchmark: its cases, its oracles against exact truth, and its files."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.editing import run
from benchmarks.editing.bench import Bench, Found, Target
from benchmarks.editing.cases import VIVID, pair_cases, render, row_cases, single_cases
from benchmarks.editing.instructed import alike, along_the_words
from benchmarks.editing.oracles import (
    byte_difference,
    centre,
    columns,
    cut_out,
    halves,
    overlap,
    psnr,
    read_objects,
    silhouette,
)
from benchmarks.editing.pointing import Shown, maps_at
from benchmarks.editing.regions import without_colors
from benchmarks.editing.results import markdown, origin, read_entries
from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.splits import is_held_out
from studio.errors import StudioError
from studio.evaluation.judge import load_judge


@pytest.fixture(scope="module")
def judge():
    return load_judge()


@pytest.fixture(scope="module")
def bench(judge):
    prior = load_prior(PocketPriorConfig(), torch.device("cpu"))
    return Bench(prior, judge, DdimConfig(steps=2, guidance_scale=3.0))


def disc(x: float, y: float, radius: float, size: int = 64) -> torch.Tensor:
    """A mask with its centre at a column and a row."""
    places = torch.arange(size) + 0.5
    return (places - x).square()[None] + (places - y).square()[:, None] <= radius**2


def painted(*discs: tuple[torch.Tensor, tuple[float, float, float]]) -> torch.Tensor:
    """Masks of one colour each over white."""
    image = torch.ones(64, 64, 3)
    for mask, color in discs:
        image[mask] = torch.tensor(color, dtype=image.dtype)
    return image


def test_more_cases_keep_the_ones_before_and_are_trained_combinations():
    assert single_cases(9, seed=3)[:4] == single_cases(4, seed=3)
    assert pair_cases(5, seed=3)[:2] == pair_cases(2, seed=3)
    assert single_cases(4, seed=3) != single_cases(4, seed=4)
    for case in [*single_cases(40, seed=0), *pair_cases(20, seed=0)]:
        spec = case.spec
        assert {spec.color, case.other_color} <= set(VIVID)
        for one in (case, case.recolored, case.swapped):
            assert not is_held_out(one.spec.kind, one.spec.color)
            assert one.spec.individual % 2 == 1
        assert len(case.prompt.split()) == len(case.recolored.prompt.split())
        assert len(case.prompt.split()) == len(case.swapped.prompt.split())
        assert len(case.patterned.prompt.split()) == len(case.prompt.split()) + 1
        assert set(case.words()) <= set(case.prompt.replace(",", "").split())
    for case in pair_cases(20, seed=0):
        first, second = case.scene.objects
        assert first.kind != second.kind
        assert second.color not in (first.color, case.other_color)


def test_colours_are_left_out_of_a_prompt_and_articles_follow():
    for case in pair_cases(40, seed=0):
        told, left = case.prompt, without_colors(case)
        assert not set(left.split()) & {*COLOR_NAMES}
        assert [w for w in told.split() if w not in ("a", "an", *COLOR_NAMES)] == [
            w for w in left.split() if w not in ("a", "an")
        ]
    prompts = map(without_colors, pair_cases(40, seed=0))
    assert "an apple left of a turtle" in prompts


def test_silhouettes_and_halves_are_the_true_ones_of_renders():
    singles = [render(case, size=64) for case in single_cases(6, seed=0)]
    pairs = [render(case, size=64) for case in pair_cases(6, seed=0)]
    alone = [overlap(silhouette(drawn.rgb), drawn.instances[0]) for drawn in singles]
    beside = [
        overlap(found, true)
        for drawn in pairs
        for found, true in zip(halves(drawn.rgb), drawn.instances, strict=True)
    ]
    # Pixels that an object covers in part count here and not in the exact mask.
    assert min(alone) > 0.85
    assert min(beside) > 0.8


def test_two_things_meet_where_the_image_is_lowest():
    big, small = disc(22, 32, 14), disc(46, 32, 10)  # they touch at column 36
    left, right = halves(painted((big, (1, 0, 0)), (small, (0, 0, 1))))
    assert overlap(left, big) > 0.98
    assert overlap(right, small) > 0.98
    speck = disc(46, 12, 2)
    left, right = halves(painted((disc(18, 32, 9), (1, 0, 0)), (small | speck, (0, 0, 1))))
    assert torch.equal(left, disc(18, 32, 9))
    assert torch.equal(right, small | speck)


def test_things_in_a_row_are_told_apart():
    for things in (3, 4):
        drawn = [render(case, size=64) for case in row_cases(4, things, seed=0)]
        overlaps = [
            overlap(found, true)
            for one in drawn
            for found, true in zip(columns(one.rgb, things), one.instances, strict=True)
        ]
        assert sorted(overlaps)[len(overlaps) // 4] > 0.7
    for case in row_cases(6, 4, seed=0):
        assert len({spec.kind for spec in case.scene.objects}) == 4
        assert len({spec.color for spec in case.scene.objects}) == 4
    assert row_cases(5, 3, seed=3)[:2] == row_cases(2, 3, seed=3)
    discs = [disc(10, 32, 7), disc(32, 30, 8), disc(54, 32, 6)]
    found = columns(painted(*((mask, (1, 0, 0)) for mask in discs)), 3)
    assert all(map(torch.equal, found, discs))
    bar = torch.zeros(64, 64, dtype=torch.bool)
    bar[20:40] = True
    bar[:, 60:] = False  # the border is what everything differs from
    shares = [float(mask.sum()) for mask in columns(painted((bar, (1, 0, 0))), 3)]
    assert max(shares) < 1.5 * min(shares), "what spans all columns is cut where they meet"


def test_edits_are_compared_in_the_judges_space(judge):
    """A recoloured render: like the one before, and changed as the words say."""
    cases = single_cases(6, seed=0)
    before = torch.stack([render(case, size=64).rgb for case in cases])
    after = torch.stack([render(case.recolored, size=64).rgb for case in cases])
    labels = np.array([[labels_of(x.spec) for x in (case, case.recolored)] for case in cases])
    assert (along_the_words(judge, before, after, labels) > 0.7).float().mean() > 0.8
    assert (along_the_words(judge, before, after, labels[:, ::-1].copy()) < -0.7).any()
    assert along_the_words(judge, before, before, labels).abs().max() == 0
    torch.testing.assert_close(alike(judge, before, before), torch.ones(6))
    assert alike(judge, before, after).max() < 0.9


def labels_of(spec) -> tuple[int, int, int]:
    return (
        KIND_NAMES.index(spec.kind),
        COLOR_NAMES.index(spec.color),
        PATTERNS.index(spec.pattern),
    )


def test_a_thing_alone_is_not_two():
    alone = disc(32, 32, 12)
    found = halves(painted((alone, (1, 0, 0))))
    assert sorted(int(mask.sum()) for mask in found) == [0, int(alone.sum())]


def test_objects_of_pairs_are_read_alone(judge):
    """The judge names most objects of true renders of pairs once they are cut out."""
    right = []
    for case in pair_cases(12, seed=0):
        image = render(case, size=64).rgb
        reads = read_objects(judge, image, halves(image))
        right += [read.shows(spec) for read, spec in zip(reads, case.scene.objects, strict=True)]
    assert sum(right) / len(right) > 0.7


def test_what_is_cut_out_is_centred_and_enlarged_over_white():
    mask = disc(16, 40, 6)
    image = painted((mask, (0.2, 0.4, 0.6)), (disc(50, 20, 6), (1, 0, 0)))
    alone = cut_out(image, mask)
    found = silhouette(alone)
    assert centre(found) == pytest.approx((32.0, 32.0), abs=1.0)
    assert found.sum() > 9 * mask.sum()
    assert alone[0, 0].tolist() == [1.0, 1.0, 1.0]
    assert alone[32, 32].tolist() == pytest.approx([0.2, 0.4, 0.6], abs=1e-5)
    assert torch.equal(cut_out(image, torch.zeros(64, 64, dtype=torch.bool)), torch.ones(64, 64, 3))


def test_measures_have_their_closed_forms():
    assert centre(disc(20.0, 41.0, 9.0)) == pytest.approx((20.0, 41.0))
    assert centre(torch.zeros(8, 8, dtype=torch.bool)) == (4.0, 4.0)
    left, right = torch.zeros(2, 4, 4, dtype=torch.bool)
    left[:, :2], right[:, 1:3] = True, True
    assert overlap(left, right) == pytest.approx(1 / 3)
    assert overlap(~left & left, ~left & left) == 1.0
    a, b = torch.zeros(4, 4, 3), torch.full((4, 4, 3), 0.1)
    assert byte_difference(a, b, left) == pytest.approx(25.5)
    assert byte_difference(a, b, ~left & left) == 0.0
    assert psnr(a, b) == pytest.approx(20.0)


def test_a_word_s_map_is_its_own_and_no_neighbour_s(bench):
    """Maps do not depend on what else is in the batch."""
    case = single_cases(1, seed=0)[0]
    drawn = render(case, size=64)
    words = (case.words(), (case.spec.color,))
    shown = [Shown("noun", drawn.rgb, case, word, drawn.instances[0]) for word in words]
    both = maps_at(bench, shown, 0, 0.4)
    assert both.shape == (2, 16, 16)
    assert not torch.allclose(both[0], both[1])
    torch.testing.assert_close(maps_at(bench, shown[1:], 0, 0.4)[0], both[1])


@pytest.fixture
def options(tmp_path):
    return run.parser().parse_args(["--n", "4", "--results", str(tmp_path)])


def counted(calls: list[int], name: str = "gate", **settings):
    """A row that remembers for how many cases it was measured."""

    def measure(bench, count):
        calls.append(count)
        found = Found(("image",))
        for k in range(count):
            found.add({"success": (k % 2, 0.0)})
            found.show(f"case {k}", [torch.rand(8, 8, 3)], bool(k % 2))
        return found

    (row,) = run.chosen_rows(name)
    return replace(row, measure=measure, targets={"success": Target(0.8)}, **settings)


def test_rows_are_measured_once_and_anew_when_something_changed(bench, options):
    calls: list[int] = []
    row, half = counted(calls), counted(calls, "p2p-swap", share=0.5)
    assert run.measure_all(bench, options, [row, half]) == []
    assert run.measure_all(bench, options, [row, half]) == []
    assert calls == [4, 4]
    path = options.results / "editing--pocket.json"
    assert list(read_entries(path)) == ["gate", "p2p-swap"]
    options.n = 6
    run.measure_all(bench, options, [row])
    assert calls == [4, 4, 6]
    run.measure_all(replace(bench, seed=1), options, [row])
    assert calls == [4, 4, 6, 6]
    assert list(read_entries(path)) == ["gate"]  # the other row's noise was another one
    options.again = True
    run.measure_all(replace(bench, seed=1), options, [row])
    assert calls == [4, 4, 6, 6, 6]


def test_costly_rows_take_fewer_cases_where_no_number_is_asked_for(bench, options):
    calls: list[int] = []
    options.n = None
    rows = [counted(calls), counted(calls, "p2p-swap", share=0.25)]
    assert run.measure_all(bench, options, rows) == []
    assert calls == [64, 16]
    text = (options.results / "editing--pocket.md").read_text()
    assert "`python -m benchmarks.editing.run --name pocket --steps 2 --guidance-scale 3" in text
    assert "| 64 | **not all met** |" in text
    assert "| 16 | **not all met** |" in text
    assert run.main(["--n", "1"]) == StudioError.exit_code


def test_no_row_begins_after_its_time(bench, options):
    calls: list[int] = []
    row = counted(calls)
    options.minutes = -1.0
    assert run.measure_all(bench, options, [row]) == [row]
    assert calls == []


def test_a_row_without_weights_is_skipped_and_says_why(bench, options):
    calls: list[int] = []
    lacking = counted(calls, "uni-controlnet", weights=options.results / "pocket-uni")
    assert run.measure_all(bench, options, [counted(calls), lacking]) == []
    assert calls == [4]
    entries = read_entries(options.results / "editing--pocket.json")
    assert entries["uni-controlnet"].reason == "the weights pocket-uni are not trained yet"
    assert entries["uni-controlnet"].targets == {"success": "at least 0.8"}
    text = (options.results / "editing--pocket.md").read_text()
    assert "**Skipped:** the weights pocket-uni are not trained yet. Targets: success at" in text
    assert "| uni-controlnet | | | | | skipped |" in text
    (options.results / "pocket-uni").mkdir()
    run.measure_all(bench, options, [lacking])
    assert calls == [4, 4]


def test_the_files_say_what_was_measured(bench, options):
    run.measure_all(bench, options, [counted([])])
    document = json.loads((options.results / "editing--pocket.json").read_text())
    assert document["prior"]["fingerprint"] == bench.prior.fingerprint
    assert document["command"] == (
        "python -m benchmarks.editing.run --name pocket --n 4 --steps 2 --guidance-scale 3 --seed 0"
    )
    assert document["rows"][0]["key"]["cases"] == 4
    text = (options.results / "editing--pocket.md").read_text()
    assert "| gate | success | 0.50 | 0.00 | 4 | **not all met** |" in text
    assert "| success | 0.50" in text
    assert "at least 0.8, **not met** |" in text
    assert (options.results / "editing--pocket" / "gate.png").exists()


def test_each_row_says_where_and_when_it_was_measured(bench, options, monkeypatch):
    """A row that an earlier call measured keeps its machine, and the page names all of them."""
    rows = [counted([]), counted([], "p2p-swap")]
    for row, name in zip(rows, ("an abacus", "a slide rule"), strict=True):
        here = {"processor": name, "commit": name[-4:], "date": f"on {name}"}
        monkeypatch.setattr(run, "origin", lambda here=here: here)
        run.measure_all(bench, options, [row])
    path = options.results / "editing--pocket.json"
    first, second = read_entries(path).values()
    assert (first.processor, first.commit, first.date) == ("an abacus", "acus", "on an abacus")
    assert second.processor == "a slide rule"
    text = path.with_suffix(".md").read_text()
    assert "a slide rule and an abacus. The seconds are of different machines and compare" in text
    assert "s, an abacus, on an abacus, commit acus. [Picture]" in text
    document = json.loads(path.read_text())
    for name in ("processor", "commit", "date", "intervals"):
        del document["rows"][0][name]
    path.write_text(json.dumps(document))
    old = read_entries(path)["gate"]
    assert (old.processor, old.commit, old.date) == ("", "", "")
    text = markdown("pocket", document, list(read_entries(path).values()))
    assert "a slide rule and an unknown machine" in text
    assert "Of gate the values of single cases are not kept." in text


def test_where_a_row_is_begun_is_found_out(monkeypatch):
    found = origin()
    assert set(found) == {"processor", "commit", "date"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_rows_are_chosen_by_name():
    chosen = run.chosen_rows("p2p-swap,gate,p2p-swap")
    assert [row.name for row in chosen] == ["p2p-swap", "gate"]
    assert run.chosen_rows(None) == run.ROWS
    names = [row.name for row in run.ROWS]
    assert len(set(names)) == len(names)
    with pytest.raises(StudioError, match="--rows has nothing - expected some of: gate, p2p"):
        run.chosen_rows("nothing")
    assert run.main(["--rows", "nothing"]) == StudioError.exit_code


@pytest.mark.slow
def test_every_row_of_the_prior_itself_can_be_measured(bench, options):
    options.n = 2
    rows = [row for row in run.ROWS if row.weights is None]
    assert run.measure_all(bench, options, rows) == []
    entries = read_entries(options.results / "editing--pocket.json")
    assert list(entries) == [row.name for row in rows]
    for row in rows:
        names = {figure.name for figure in entries[row.name].figures}
        assert set(row.targets) <= names
        assert (options.results / "editing--pocket" / f"{row.name}.png").exists()
