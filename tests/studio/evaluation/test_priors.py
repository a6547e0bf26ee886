"""Prompts, figures and gates of a prior, with a tiny real pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import ImageFont

from image_tools.diffusion.loading import load_folder
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.splits import is_held_out
from studio.commands.eval import sample_label
from studio.evaluation.image_text import IMAGE_TEXT_WEIGHTS, load_image_text
from studio.evaluation.judge import Judge, JudgeNet, Verdicts
from studio.evaluation.priors import (
    GATES,
    PriorEvalConfig,
    Request,
    evaluate_prior,
    judged_figures,
    requests,
)


@pytest.fixture(scope="module")
def report(tiny_prior: Path):
    """A prior of random weights, judged by a network of random weights."""
    torch.manual_seed(0)
    config = PriorEvalConfig(samples=20, steps=1, vae_images=4, batch_size=8)
    return evaluate_prior(load_folder(tiny_prior, torch.device("cpu")), Judge(JudgeNet()), config)


def test_prompts_cover_all_combinations_before_any_comes_again():
    train = requests(300, held_out=False, seed=0)
    pairs = [(r.spec.kind, r.spec.color) for r in train[:274]]
    assert len(set(pairs)) == 274
    assert not any(is_held_out(*pair) for pair in pairs)
    held_out = requests(46, held_out=True, seed=0)
    assert len({(r.spec.kind, r.spec.color) for r in held_out}) == 46
    assert all(is_held_out(r.spec.kind, r.spec.color) for r in held_out)


def test_prompts_ask_for_every_view():
    found = requests(30, held_out=False, seed=0)
    views = [r.view for r in found]
    assert views[:10] == [*("front", "side", "back") * 3, "overhead"]
    assert found[1].prompt.endswith(f" {found[1].spec.color} {noun(found[1])}, side view")


def noun(request) -> str:
    """The noun in the request's prompt."""
    return request.prompt.split(f"{request.spec.color} ")[1].split(",")[0]


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_labels_are_no_wider_than_the_image_they_stand_under(kind):
    font = ImageFont.load_default(10)
    for color in COLOR_NAMES:
        request = Request(ObjectSpec(kind, color), "overhead", held_out=True)
        label = sample_label(request, f"{color} hamburger")
        assert max(font.getlength(line) for line in label.split("\n")) <= 64
    assert sample_label(request, f"{color} {kind}").split("\n")[1:] == [
        kind.replace("_", " "),
        "overhead *",
    ]


def test_figures_count_what_they_should(report):
    counts = {name: figure.n for name, figure in report.figures.items()}
    assert (counts["train_kind"], counts["held_out_color"], counts["vae_psnr_db"]) == (20, 10, 4)
    words = ("view_front", "view_side", "view_back", "view_overhead")
    assert counts["view"] == sum(counts[word] for word in words) < 30
    assert len(report.images) == len(report.requests) == len(report.seen) == len(report.right) == 30


def test_both_are_the_images_whose_kind_and_colour_are_right(report):
    for name, held_out in (("train_both", False), ("held_out_both", True)):
        marks = [m for m, r in zip(report.right, report.requests) if r.held_out == held_out]
        assert report.figures[name].value == pytest.approx(sum(marks) / len(marks))
        assert report.figures[name].n == len(marks)
        assert name not in GATES


def test_verdicts_that_miss_in_turn_are_right_in_kind_or_colour_but_not_in_both():
    """Half of the kinds and half of the colours are right, and never of the same image."""
    wanted = requests(8, held_out=False, seed=0) + requests(4, held_out=True, seed=0)
    kind = torch.zeros(12, len(KIND_NAMES))
    color = torch.zeros(12, len(COLOR_NAMES))
    for k, request in enumerate(wanted):
        shift = k % 2
        kind[k, (KIND_NAMES.index(request.spec.kind) + shift) % len(KIND_NAMES)] = 1.0
        color[k, (COLOR_NAMES.index(request.spec.color) + 1 - shift) % len(COLOR_NAMES)] = 1.0
    found = judged_figures(wanted, Verdicts(kind, color, torch.zeros(12, 4), torch.zeros(12, 4)))
    shares = {name: figure.value for name, figure in found.items()}
    for side in ("train", "held_out"):
        assert (shares[f"{side}_kind"], shares[f"{side}_color"]) == (0.5, 0.5)
        assert shares[f"{side}_both"] == 0.0


def test_gates_are_compared_with_the_values(report):
    assert set(report.passed) == set(GATES)
    assert all(
        report.passed[name] == (report.figures[name].value >= bar) for name, bar in GATES.items()
    )
    assert not report.passed["train_kind"]
    assert report.as_dict()["passed"] == report.passed


def test_names_of_real_objects_are_ranked_if_there_is_a_score(report, tiny_prior):
    assert not [name for name in report.figures if name.startswith(("held_name", "name_chance"))]
    if not IMAGE_TEXT_WEIGHTS.exists():
        pytest.skip("no weights of the image-text score: studio train image-text makes them")
    config = PriorEvalConfig(samples=2, steps=1, vae_images=1, batch_size=64, name_images=1)
    prior = load_folder(tiny_prior, torch.device("cpu"))
    ranked = evaluate_prior(prior, Judge(JudgeNet()), config, scorer=load_image_text())
    figures = ranked.figures
    assert figures["held_name_top1"].n == figures["train_name_top1"].n == 49
    assert figures["held_name_top5"].value < figures["held_true_top5"].value
    assert set(ranked.passed) == set(GATES), "names have no gate"
    assert len(ranked.images) == len(ranked.requests), "their images are no part of the sheet"


def test_the_same_seed_gives_the_same_samples(report, tiny_prior):
    again = evaluate_prior(
        load_folder(tiny_prior, torch.device("cpu")), Judge(JudgeNet()), report.config
    )
    assert torch.equal(again.images, report.images)
