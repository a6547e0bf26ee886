"""Measures of instructed edits, on edits whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.editing.edit_training import new_edit_unet
from image_tools.pocket.paths import POCKET_FOLDER
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from scenes.toybox.objects import ObjectSpec
from studio.evaluation import edits
from studio.evaluation.edits import EditCases, EditEvalConfig, evaluate_edits
from studio.evaluation.judge import load_judge
from studio.evaluation.views import eval_cameras, render_toy

CONFIG = EditEvalConfig(samples=2, steps=1, batch_size=2)
CHANGES = {
    "recolor": (ObjectSpec("mug", "red"), ObjectSpec("mug", "blue")),
    "replace": (ObjectSpec("rocket", "green"), ObjectSpec("car", "green")),
}


@pytest.fixture(scope="module")
def cases() -> EditCases:
    """True renders before and after two edits."""
    camera = eval_cameras(8)[1:2]
    sources, targets = (
        torch.cat([render_toy(specs[k], camera).rgb for specs in CHANGES.values()]) for k in (0, 1)
    )
    labels = [
        [
            [KIND_NAMES.index(s.kind), COLOR_NAMES.index(s.color), PATTERNS.index(s.pattern)]
            for s in specs
        ]
        for specs in CHANGES.values()
    ]
    instructions = ("make it blue", "turn it into a car")
    return EditCases(sources, targets, instructions, tuple(CHANGES), np.array(labels))


@pytest.fixture(scope="module")
def prior():
    return load_folder(POCKET_FOLDER, torch.device("cpu"))


def measured(prior, cases: EditCases, images: torch.Tensor, monkeypatch) -> dict[str, float]:
    """Figures as if the edit model had made these images."""
    monkeypatch.setattr(edits, "_edited", lambda *_: images)
    report = evaluate_edits(prior, new_edit_unet(prior), load_judge(), cases, CONFIG)
    return {name: figure.value for name, figure in report.figures.items()}


def test_the_true_edit_is_done_keeps_the_rest_and_leaves_the_outside(
    prior, cases, monkeypatch
) -> None:
    figures = measured(prior, cases, cases.targets, monkeypatch)
    for name in CHANGES:
        assert figures[f"{name}_done"] == figures[f"{name}_true_done"] == 1.0
        assert figures[f"{name}_kept"] == figures[f"{name}_true_kept"] == 1.0
        assert figures[f"{name}_source_done"] == 0.0
    assert figures["recolor_shape"] == 1.0
    assert figures["outside"] < 1e-3, "edge pixels fainter than a foreground"
    assert "replace_shape" not in figures
    assert "pattern_done" not in figures


def test_an_untouched_image_keeps_everything_and_does_nothing(prior, cases, monkeypatch) -> None:
    figures = measured(prior, cases, cases.sources, monkeypatch)
    assert [figures[f"{name}_done"] for name in CHANGES] == [0.0, 0.0]
    assert [figures[f"{name}_kept"] for name in CHANGES] == [1.0, 1.0]
    assert figures["outside"] == 0.0
    assert figures["outside_db"] == pytest.approx(60.0), "no error counts as one in a thousand"


def test_a_changed_background_is_told_by_how_much(prior, cases, monkeypatch) -> None:
    figures = measured(prior, cases, (cases.sources - 0.25).clamp(min=0.0), monkeypatch)
    assert figures["outside"] == pytest.approx(0.25, abs=1e-3)
    assert figures["outside_db"] == pytest.approx(12.04, abs=0.1)


def test_a_model_is_sampled_with_its_images_and_reported_as_json(prior, cases) -> None:
    report = evaluate_edits(prior, new_edit_unet(prior), load_judge(), cases, CONFIG)
    assert report.images.shape == cases.sources.shape
    told = report.as_dict()
    assert told["config"]["image_scale"] == 1.5
    assert told["figures"]["recolor_done"]["n"] == 1
