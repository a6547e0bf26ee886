"""The 2D bench of personalization: what is asked, what is measured, and which rows are made."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.personalization import run_2d
from benchmarks.personalization.checks import check_accuracy, obeyed
from benchmarks.personalization.drift import (
    accuracy,
    class_prompts,
    noised_predictions,
    unrelated_prompts,
)
from benchmarks.personalization.features import SubjectFeatures, share_by_subject
from benchmarks.personalization.methods import VARIANTS, train, training_config, variants_of
from benchmarks.personalization.results_2d import page, sheet_of
from benchmarks.personalization.rows_2d import PHOTOS, PRIOR, Bench, Cell, DrawSettings
from benchmarks.personalization.subjects import (
    CAPTIONS,
    CASES,
    Ask,
    asks_of,
    case_of,
    write_photos,
)
from benchmarks.personalization.tables import difference_table, figures_table
from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.personalization.captions import read_captions
from scenes.objects.subjects import SUBJECTS, subject_photos
from scenes.toybox.objects import ObjectSpec
from studio.config import dump_yaml
from studio.errors import ConfigError, StudioError
from studio.evaluation.comparison import Result
from studio.evaluation.intervals import wilson
from studio.evaluation.judge import load_judge
from studio.evaluation.views import eval_cameras, render_toy
from studio.run_folder import create_run, write_atomic

RABBIT, TRAIN = case_of("rabbit"), case_of("toy-train")


@pytest.fixture(scope="module")
def features() -> SubjectFeatures:
    """Two subjects are enough to be told apart."""
    return SubjectFeatures(load_judge(), [RABBIT, TRAIN])


@pytest.fixture(scope="module")
def prior():
    """The shipped one."""
    return load_prior(PocketPriorConfig(), torch.device("cpu"))


def photos_of(name: str, seed: int) -> torch.Tensor:
    """Photos that are neither references nor the scale."""
    photos = subject_photos(name, image_size=64, seed=seed)
    return torch.stack([torch.from_numpy(photo.rgb) for photo in photos])


# --- what is asked --------------------------------------------------------------------------------


def test_there_is_a_case_for_every_subject():
    assert tuple(case.name for case in CASES) == SUBJECTS


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_prompt_speaks_of_the_subject_and_views_are_asked_where_there_are_some(case):
    asks = asks_of(case, each=2)
    assert all("<x>" in ask.prompt("<x>") and "{}" not in ask.prompt("<x>") for ask in asks)
    assert any(ask.group == "view" for ask in asks) == case.has_front
    assert len(asks) == 2 * (10 if case.has_front else 7)


def test_captions_say_which_side_each_photo_shows(tmp_path):
    write_photos(RABBIT, tmp_path, image_size=16)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    captions = read_captions(tmp_path / CAPTIONS, names=names)
    assert len(names) == 5
    assert captions.prompts[2] == "a <my-rabbit>, front view"
    assert captions.base_prompts[0] == captions.prompts[0].replace("<my-rabbit>", "rabbit")
    assert (captions.tokens, captions.initializers) == (("<my-rabbit>",), ("rabbit",))


def test_unrelated_prompts_leave_out_the_class_and_class_prompts_name_it():
    assert all("train" not in p.prompt for p in unrelated_prompts(TRAIN, 60))
    assert class_prompts(TRAIN, 2)[0].kind == "train"
    assert class_prompts(case_of("dog"), 1)[0].kind is None


# --- what is measured -----------------------------------------------------------------------------


def test_photos_are_like_their_subject_and_not_like_another(features):
    own, other = photos_of("rabbit", 8), photos_of("toy-train", 8)
    assert features.fidelity(own, "rabbit") > 0.7
    assert features.fidelity(other, "rabbit") < 0.3
    assert features.identified(own, "rabbit").float().mean() >= 0.6
    assert not features.identified(other, "rabbit").any()


def test_another_object_of_the_class_is_not_the_subject(features):
    toys = render_toy(ObjectSpec("train", "blue"), eval_cameras(4)).rgb
    assert not features.identified(toys, "toy-train").any()


def test_a_blot_is_nobody(features):
    blots = torch.rand(8, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    for name in features.names:
        assert not features.identified(blots, name).any()


def test_the_measure_of_likeness_says_how_far_it_can_be_trusted(features):
    found = features.retrieval(["rabbit", "toy-train"])
    assert found.photos.n == 2, "subjects, not their pictures"
    assert found.photos.value >= 0.8
    assert found.renders.value > 0.8
    assert found.views.value > 0.8


def test_pictures_of_one_subject_are_no_independent_draws():
    """Ten pictures each of six subjects, of which one is never known."""
    right = [[True] * 10] * 5 + [[False] * 10]
    found = share_by_subject(right)
    assert found == wilson(5, 6)
    pictures = wilson(50, 60)
    assert found.high - found.low > 2 * (pictures.high - pictures.low)


def test_checks_see_what_is_there_and_not_what_is_not(features):
    found = check_accuracy([RABBIT, TRAIN], features)
    assert found["relation"].value == 1.0
    assert found["background"].value == 1.0
    chair = render_toy(ObjectSpec("chair", "white"), eval_cameras(1)).rgb
    asks = [Ask("relation", "", "left blue"), Ask("background", "", "red"), Ask("color", "", "red")]
    assert obeyed(chair.expand(3, -1, -1, -1), asks, RABBIT, features) == [False] * 3
    assert obeyed(chair, [Ask("plain", "")], RABBIT, features) == [True]


def test_a_thing_on_the_wrong_side_does_not_count(features):
    image = np.ones((64, 64, 3), np.float32)
    image[20:50, 40:60] = (0.1, 0.28, 0.85)
    images = torch.from_numpy(image)[None]
    for half, right in (("right", True), ("left", False)):
        assert obeyed(images, [Ask("relation", "", f"{half} blue")], RABBIT, features) == [right]


def test_drift_is_zero_of_the_prior_itself_and_accuracy_one_of_true_objects(prior):
    prompts = class_prompts(RABBIT, 4)
    images = torch.cat(
        [render_toy(ObjectSpec("rabbit", prompt.color), eval_cameras(1)).rgb for prompt in prompts]
    )
    texts = [prompt.prompt for prompt in prompts]
    once = noised_predictions(prior, prior, images, texts)
    assert torch.equal(once, noised_predictions(prior, prior, images, texts))
    assert not torch.equal(once, noised_predictions(prior, prior, images, texts[::-1]))
    assert accuracy(load_judge(), images, prompts) == 1.0


# --- which rows are made --------------------------------------------------------------------------


def options(*arguments: str, runs):
    """The parsed command line."""
    found = run_2d.parser().parse_args(arguments)
    found.runs = runs
    return found


def test_rows_go_subject_by_subject_and_references_come_first(tmp_path):
    cells = run_2d.cells_of(
        options("--subjects", "rabbit,dog", "--methods", "dco", "--steps", "7", runs=tmp_path)
    )
    assert [(cell.case.name, cell.name) for cell in cells] == [
        (name, row) for name in ("rabbit", "dog") for row in (PHOTOS, PRIOR, "dco", "dco+cg")
    ]
    assert {cell.config.method.loop.steps for cell in cells if cell.config} == {7}
    assert cells[2].config is cells[3].config
    assert cells[2].config.token == "<my-rabbit>"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subjects", "rabit"], "No subject 'rabit' - expected some of dog, cat"),
        (["--subjects", ","], "expected some of dog"),
        (["--methods", "dco,sdxl"], "expected some of dco, dco\\+cg"),
        (["--set", "lora:method.beta=3"], "no system 'lora'"),
        (["--set", "dco:method.betta=3"], "betta"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_2d.cells_of(options(*arguments, runs=tmp_path))


def test_a_variant_can_be_chosen_alone():
    assert [variant.name for variant in variants_of("dco+cg")] == ["dco+cg"]
    assert variants_of(",".join(variant.method for variant in VARIANTS)) == list(VARIANTS)


@pytest.fixture
def bench(prior, features, tmp_path) -> Bench:
    """Pictures of one step each."""
    settings = DrawSettings(each=1, drift=2, sampler=DdimConfig(steps=1, guidance_scale=5.0))
    write_photos(RABBIT, tmp_path / "rabbit" / PHOTOS, image_size=64)
    return Bench(prior, features, settings, tmp_path)


def trained(bench: Bench, method: str) -> list[Cell]:
    """The rows of a training of one step."""
    steps = ("method.loop.steps=1", "method.batch.size=1")
    config = training_config(method, RABBIT, bench.runs / "rabbit" / PHOTOS, steps)
    return [Cell(RABBIT, v.name, v, config) for v in variants_of(method)]


@pytest.mark.slow
def test_rows_are_made_once_and_anew_when_settings_change(bench):
    references = [Cell(RABBIT, name, None, None) for name in (PHOTOS, PRIOR)]
    cells = [*references, *trained(bench, "textual_inversion"), *trained(bench, "dco")]
    rows = [bench.row(cell) for cell in cells]
    photos, plain, word, dco, guided = rows
    assert photos.metrics["fidelity"] > 0.5
    assert plain.metrics["class_right"] == word.metrics["class_right"]
    assert word.metrics["class_change"] == 0.0, "a new word changes no other prompt"
    assert dco.metrics["class_change"] == guided.metrics["class_change"] > 0.0
    assert len(list(bench.runs.glob("rabbit/rabbit/*/run.json"))) == 2, "variants share trainings"
    assert not bench.pictures(cells[3])["asked"].equal(bench.pictures(cells[4])["asked"])
    before = {path: path.stat().st_mtime_ns for path in bench.runs.glob("rows/*")}
    assert [bench.row(cell) for cell in cells] == rows
    assert {path: path.stat().st_mtime_ns for path in bench.runs.glob("rows/*")} == before
    bench.measure_again = True
    again = [bench.row(cell) for cell in cells]
    assert again == rows, "the same pictures have the same figures"
    bench.settings = replace(bench.settings, consistency=5.0)
    assert bench.pictures(cells[3]) is not None
    assert bench.pictures(cells[4]) is None, "only consistency guidance has such a weight"
    sheet = sheet_of(bench, list(zip(cells, rows, strict=True)))
    assert sheet.shape[2] == 3
    assert sheet.std() > 0.05


def test_the_page_names_the_prior_and_pairs_subjects():
    rows = [
        Result(system, name, 0, "done", {"fidelity": base + more, "prompt": 0.5}, prior="abc")
        for system, more in (("dreambooth_lora", 0.0), ("dco", 0.25))
        for name, base in zip(("rabbit", "dog", "cat", "car", "bus"), (0.25, 0.5, 0.75, 0.5, 0.5))
    ]
    document = {
        "command": "x",
        "date": "y",
        "machine": {"processor": "z"},
        "priors": ["abc"],
        "steps": 7,
        "trust": {"photos": {"value": 0.95, "low": 0.85, "high": 1.0, "n": 20}},
    }
    text = page("n", document, rows)
    assert "prior abc. 7 optimiser steps" in text
    assert "number of pictures: photos 0.95 (20). Their intervals" in text
    assert "| **dco** | 5 | 0.75 [0.53, 0.97] |" in text
    assert "| **dco** | +0.25 (all equal) |" in text
    text = page("n", document | {"trust_unit": "subjects"}, rows)
    assert "of n subjects: photos 0.95 [0.85, 1.00] (20)." in text


def test_a_figure_that_some_subjects_lack_has_an_n_of_its_own():
    """A hamburger has no front, so its views are not judged."""
    names = ("rabbit", "dog", "cat", "car", "bus", "hamburger")
    rows = [
        Result(system, name, 0, "done", {"fidelity": 0.1 * k, "view": view})
        for system, better in (("dreambooth_lora", 0.0), ("dco", 0.5))
        for k, name in enumerate(names)
        for view in [None if name == "hamburger" else min(1.0, better + 0.1 * k * k)]
    ]
    figures = {"fidelity": "fidelity", "view": "view", "color": "colour"}
    line = figures_table(rows, figures, {}).splitlines()[-1]
    assert re.fullmatch(r"\| \*\*dco\*\* \| 6 \| 0.25 \[.*\] \| 0.80 \[.*\] \(n 5\) \| – \|", line)
    line = difference_table(rows, figures, to="dreambooth_lora").splitlines()[-1]
    assert re.fullmatch(r"\| .* \| \+0.00 \(all equal\) \| \+0.32 \[.*\] \(n 5\) \| – \|", line)


def test_a_training_of_another_prior_is_passed_over(tmp_path):
    config = training_config("dco", RABBIT, tmp_path / PHOTOS, ())
    run = create_run(tmp_path, prompt="rabbit", method="dco", seed=0, info={})
    write_atomic(run.resolved_path, dump_yaml(config))
    run.update_info({"status": "done", "prior_fingerprint": "old"})
    assert train(config, tmp_path, prior="old").path == run.path
    with pytest.raises(StudioError):  # it begins, and misses its photos
        train(config, tmp_path, prior="new")
    assert len(list(tmp_path.glob("rabbit/*/run.json"))) == 2
