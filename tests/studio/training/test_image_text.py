"""The recipe of the image-text score: its regression in closed form, its wear, and all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from studio.evaluation.image_text import TextSide, load_image_text
from studio.training.image_text import ImageTextConfig, fit_ridge, train_image_text, worn
from tests.studio.evaluation.backbones import public_weights


def test_without_a_penalty_an_affine_map_is_found_exactly(generator):
    features = torch.randn(50, 6, generator=generator)
    matrix, bias = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    targets = features @ matrix.T + bias
    weights = torch.rand(50, generator=generator) + 0.1
    found = fit_ridge(features, targets, weights, ridge=0.0)
    torch.testing.assert_close(found[0], matrix, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], bias, atol=1e-5, rtol=1e-5)


def test_a_row_of_weight_two_counts_like_two_rows(generator):
    features, targets = (torch.randn(20, k, generator=generator) for k in (5, 3))
    weights = torch.ones(20)
    weights[7] = 2.0
    once = fit_ridge(features, targets, weights, ridge=0.3)
    rows = [*range(20), 7]
    twice = fit_ridge(features[rows], targets[rows], torch.ones(21), ridge=0.3)
    for one, other in zip(once, twice):
        torch.testing.assert_close(one, other)


def test_a_large_penalty_leaves_the_weighted_mean(generator):
    features, targets = (torch.randn(20, k, generator=generator) for k in (5, 3))
    weights = torch.rand(20, generator=generator)
    matrix, bias = fit_ridge(features, targets, weights, ridge=1e9)
    assert matrix.abs().max() < 1e-6
    torch.testing.assert_close(bias, weights @ targets / weights.sum(), atol=1e-5, rtol=1e-5)


def test_the_penalty_follows_the_scale_of_the_features(generator):
    """So that the same setting serves another backbone."""
    features, targets = (torch.randn(20, k, generator=generator) for k in (5, 3))
    matrix, bias = fit_ridge(features, targets, torch.ones(20), ridge=0.3)
    scaled, same = fit_ridge(10.0 * features, targets, torch.ones(20), ridge=0.3)
    torch.testing.assert_close(10.0 * scaled, matrix)
    torch.testing.assert_close(same, bias)


def test_worn_images_have_lost_detail_and_the_others_nothing(generator):
    images = torch.rand(40, 64, 64, 3, generator=generator)
    assert torch.equal(worn(images, 0.0, np.random.default_rng(0)), images)
    half = worn(images, 0.5, np.random.default_rng(0))
    changed = (half != images).flatten(1).any(1)
    assert 10 < changed.sum() < 30
    detail = (half[:, 1:] - half[:, :-1]).square().mean((1, 2, 3))
    assert detail[changed].max() < detail[~changed].min()
    assert 0.0 <= half.min() <= half.max() <= 1.0


@pytest.mark.slow
def test_the_recipe_resumes_and_writes_a_file_that_loads_and_a_card(generator, tmp_path: Path):
    backbone, out = tmp_path / "backbone.pth", tmp_path / "score.safetensors"
    torch.save(public_weights(generator), backbone)
    config = ImageTextConfig(views=1, toys=3)

    def train(lines: list[str]) -> dict[str, float]:
        return train_image_text(
            config, tmp_path / "work", backbone=backbone, out=out, log=lines.append
        )

    lines: list[str] = []
    measured = train(lines)
    first = out.read_bytes()
    (tmp_path / "work" / "features" / "000096.safetensors").unlink()
    again: list[str] = []
    assert train(again) == measured
    assert len(again) == 1 < len(lines)
    assert out.read_bytes() == first
    card = json.loads(out.with_suffix(".json").read_text())
    assert set(measured) < set(card["measured"])
    assert card["config"]["views"] == 1
    load_image_text(out, text=TextSide.of_pocket())
