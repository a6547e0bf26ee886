"""Sets of views, judged: what is asked for, and measures with known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.camera_embedding import add_camera_embedding
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.prior import PriorParts
from image_tools.pocket.paths import POCKET_FOLDER
from scenes.toybox.splits import is_held_out
from studio.commands.eval import figures_table
from studio.evaluation.judge import load_judge
from studio.evaluation.view_sets import (
    ViewSetEvalConfig,
    evaluate_view_sets,
    foreground,
    mirror_iou,
    set_requests,
)
from studio.evaluation.views import render_toy

TINY = ViewSetEvalConfig(sets=2, steps=1, batch_size=2)


@pytest.fixture(scope="module")
def pocket():
    """The shipped text-to-image prior."""
    return load_folder(POCKET_FOLDER, torch.device("cpu"))


@pytest.mark.parametrize("held_out", [True, False])
def test_every_set_is_asked_for_all_sides(held_out):
    found = set_requests(20, held_out=held_out, seed=1)
    assert len({(r.spec.kind, r.spec.color) for r in found}) == 20
    for request in found:
        assert request.views == ("front", "side", "back", "side")
        assert is_held_out(request.spec.kind, request.spec.color) == held_out
        assert "view" not in request.prompt
        assert len(request.cameras(64)) == 4


def test_opposite_silhouettes_of_true_objects_mirror_each_other():
    """And two different objects do not."""
    requests = set_requests(6, held_out=False, seed=3)
    views = [render_toy(r.spec, r.cameras(64)).rgb for r in requests]
    masks = [foreground(rgb) for rgb in views]
    own = [mirror_iou(m) for m in masks]
    mixed = [mirror_iou(torch.cat([a[:2], b[2:]])) for a, b in zip(masks, masks[1:] + masks[:1])]
    assert min(own) > 0.6
    assert sum(own) / 6 > sum(mixed) / 6 + 0.15


def test_the_foreground_is_found_on_any_background():
    request = set_requests(1, held_out=False, seed=3)[0]
    toy = render_toy(request.spec, request.cameras(64))
    found = foreground(toy.rgb)
    assert (found == (toy.mask > 0.5)).float().mean() > 0.97
    blank = torch.full((4, 8, 8, 3), 0.4)
    assert not foreground(blank).any()
    assert mirror_iou(foreground(blank)) == 0.0


def test_a_multiview_prior_and_its_baseline_are_measured_alike(pocket):
    """An untrained camera embedding changes nothing, so only cross-view attention differs."""
    judge = load_judge()
    parts = PriorParts(
        load_folder(POCKET_FOLDER, torch.device("cpu")).unet,
        pocket.vae,
        pocket.text,
        pocket.scheduler_config,
        "mv",
    )
    add_camera_embedding(parts.unet, torch.Generator().manual_seed(0))
    multiview = evaluate_view_sets(MultiViewPrior(parts), judge, TINY)
    baseline = evaluate_view_sets(pocket, judge, TINY)
    assert multiview.images.shape == baseline.images.shape == (3, 4, 64, 64, 3)
    assert set(multiview.figures) == set(baseline.figures)
    first, second = (one.as_dict()["figures"] for one in (multiview, baseline))
    assert first["mirror_true"] == second["mirror_true"]
    assert not torch.equal(multiview.images, baseline.images)
    for figure in multiview.figures.values():
        assert 0.0 <= figure.value <= 1.0
        assert not figure.has_interval, "three sets are too few"
    text = figures_table(multiview.figures)
    assert "set_agrees" in text
    assert "gate" not in text


def test_sets_do_not_depend_on_how_many_are_drawn_at_once(pocket):
    whole = evaluate_view_sets(pocket, load_judge(), TINY)
    single = evaluate_view_sets(pocket, load_judge(), replace(TINY, batch_size=1))
    torch.testing.assert_close(whole.images, single.images, atol=1e-4, rtol=1e-4)
