"""The recipe of the judge: its data, its augmentations, its loss, a training of three steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scenes.toybox.catalog import KIND_NAMES
from scenes.toybox.splits import N_INDIVIDUALS, is_held_out
from studio.errors import ConfigError
from studio.evaluation.judge import HEADS, SYMMETRIC_KINDS, VIEWS, load_judge, split_heads
from studio.training import judge_data
from studio.training.judge import PRESETS, judge_loss, train_judge
from studio.training.judge_augment import augment, backgrounds
from studio.training.judge_data import (
    JudgeDataConfig,
    draw_janus_views,
    draw_object,
    draw_views,
    render_judge_data,
    seen_view,
)

SMALL = JudgeDataConfig(objects=3, janus_objects=2, views=2, seed=3)


def quiet(_: str) -> None:
    """A log that nobody reads."""


def test_individuals_are_those_that_neither_priors_nor_evaluation_use():
    specs = [draw_object(np.random.default_rng(k), 0.55) for k in range(400)]
    assert all(N_INDIVIDUALS <= spec.individual < 2 * N_INDIVIDUALS for spec in specs)
    assert {spec.kind for spec in specs} == set(KIND_NAMES)
    assert any(is_held_out(spec.kind, spec.color) for spec in specs)
    plain = sum(spec.pattern == "plain" for spec in specs)
    assert plain / len(specs) == pytest.approx(0.55, abs=0.1)


def test_images_hold_colour_over_white_and_coverage():
    images, labels = draw_views(np.random.default_rng(0), SMALL)
    assert images.shape == (2, 64, 64, 4)
    alpha = images[..., 3]
    assert (images[alpha == 0][:, :3] == 255).all()
    assert 0.05 < (alpha == 255).mean() < 0.8
    assert labels[0][:3] == labels[1][:3]
    assert all(0 <= row[3] < len(VIEWS) for row in labels)


@pytest.mark.parametrize(
    ("fronts", "azimuth_deg", "view"),
    [
        ((True, False, False, False), 10.0, "front"),
        ((True, False, False, False), 100.0, "side"),
        ((True, False, False, False), -170.0, "back"),
        ((True, False, True, False), -170.0, "front"),
        ((True, False, True, False), -100.0, "side"),
        ((True, False, False, True), -100.0, "front"),
        ((True, True, True, True), 130.0, "front"),
    ],
)
def test_a_front_is_seen_wherever_one_faces_the_camera(fronts, azimuth_deg, view):
    assert seen_view(fronts, azimuth_deg, 20.0) == view
    assert seen_view(fronts, azimuth_deg, 80.0) == "overhead"


def test_janus_views_are_of_kinds_with_a_front():
    for k in range(6):
        images, labels = draw_janus_views(np.random.default_rng(k), SMALL)
        assert images.shape == (2, 64, 64, 4)
        assert KIND_NAMES[labels[0][0]] not in SYMMETRIC_KINDS


def test_rendering_continues_to_the_same_images(tmp_path, monkeypatch):
    whole = render_judge_data(tmp_path / "whole", SMALL, log=quiet)
    monkeypatch.setattr(judge_data, "CHUNK", 2)

    def stop_after_four(line: str) -> None:
        if line.startswith("rendered 4/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_judge_data(tmp_path / "parts", SMALL, log=stop_after_four)
    assert len(judge_data.JudgeData(tmp_path / "parts")) == 4
    parts = render_judge_data(tmp_path / "parts", SMALL, log=quiet)
    assert (parts.labels == whole.labels).all()
    assert (parts.images == whole.images).all()


@pytest.mark.parametrize("name", ["objects", "seed"])
def test_images_of_other_settings_are_refused(tmp_path, name):
    render_judge_data(tmp_path, SMALL, log=quiet)
    other = replace(SMALL, **{name: getattr(SMALL, name) + 1})
    before = (tmp_path / "images.npy").read_bytes()
    with pytest.raises(ConfigError, match=r"images of other settings. Name another folder"):
        render_judge_data(tmp_path, other, log=quiet)
    assert (tmp_path / "images.npy").read_bytes() == before


def test_backgrounds_are_mostly_white(generator):
    images = backgrounds(400, 8, generator)
    white = (images == 1.0).all(1).all(1).all(1).float().mean()
    assert float(white) == pytest.approx(0.6, abs=0.1)
    assert images.min() >= 0
    assert images.max() <= 1


def layers(count: int) -> torch.Tensor:
    """A blue square in the middle of nothing."""
    x = torch.full((count, 4, 64, 64), 255, dtype=torch.uint8)
    x[:, 3] = 0
    x[:, :, 20:44, 20:44] = torch.tensor([20, 60, 220, 255], dtype=torch.uint8)[:, None, None]
    return x


def test_augmented_images_still_show_the_object_in_its_colour(generator):
    images = augment(layers(64), generator)
    assert images.shape == (64, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1
    middle = images[:, :, 28:36, 28:36].mean((2, 3))
    assert (middle[:, 2] > middle[:, 0] + 0.2).float().mean() > 0.9


def test_augmentation_is_repeatable_and_varied():
    first, second, other = (
        augment(layers(8), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len({image.sum().item() for image in first}) == 8


@pytest.mark.parametrize(
    ("kind", "view", "counts"),
    [("duck", "back", True), ("tree", "back", False), ("tree", "overhead", True)],
)
def test_the_view_of_a_symmetric_kind_counts_only_from_overhead(kind, view, counts):
    labels = torch.tensor([[KIND_NAMES.index(kind), 0, 0, VIEWS.index(view)]])
    logits = torch.zeros(1, sum(HEADS.values()), requires_grad=True)
    loss = judge_loss(logits, labels, view_weight=2.0, pattern_weight=0.5)
    without = np.log(32) + np.log(10) + 0.5 * np.log(4)
    assert float(loss.detach()) == pytest.approx(without + 2.0 * counts * np.log(4), rel=1e-5)
    loss.backward()
    touched = split_heads(logits.grad)[3][0].any(1)  # by kind
    assert touched.nonzero().flatten().tolist() == ([labels[0, 0].item()] if counts else [])


def test_training_writes_weights_and_an_honest_card(tmp_path: Path):
    config = replace(
        PRESETS["cpu"],
        data=SMALL,
        batch_size=4,
        test_images=8,
        loop=replace(PRESETS["cpu"].loop, steps=3),
    )
    out = tmp_path / "judge.safetensors"
    measured = train_judge(
        config, tmp_path / "work", out=out, device=torch.device("cpu"), log=quiet
    )
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["steps"] == 3
    assert card["measured"]["kind"] == round(measured["kind"], 4)
    assert card["parameters"] <= 1_000_000
    verdicts = load_judge(out)(torch.rand(2, 64, 64, 3))
    assert verdicts.kind.sum(1).tolist() == pytest.approx([1.0, 1.0])
    again = train_judge(config, tmp_path / "work", out=out, device=torch.device("cpu"), log=quiet)
    assert again == measured
