"""Right view words against wrong ones: what is wrong, and what the comparison rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from studio.training.contrast import (
    CONTRARY_VIEWS,
    ContrastConfig,
    WrongViews,
    contrast_loss,
)

CAPTIONS = [
    "a red duck",
    "a blue car, left side view",
    "a car, a bus, front view",
    "mug, side view",
]


def lengths(captions: list[str]) -> torch.Tensor:
    """States that tell captions apart."""
    return torch.tensor([[[float(len(caption))]] for caption in captions])


def test_no_view_is_contrary_to_itself_and_no_side_to_the_plain_side():
    for view, wrong in CONTRARY_VIEWS.items():
        assert view not in wrong
        assert set(wrong) <= set(CONTRARY_VIEWS)
        assert not (view.endswith("side view") and view != "side view" and "side view" in wrong)
    assert not any(w.endswith(" side view") for w in CONTRARY_VIEWS["side view"])


def test_only_the_view_of_a_caption_is_exchanged():
    rng = np.random.default_rng(0)
    seen = {WrongViews.contradict("a car, a bus, front view", rng) for _ in range(64)}
    assert seen == {f"a car, a bus, {view}" for view in CONTRARY_VIEWS["front view"]}


def test_drawn_rows_are_those_that_name_a_view():
    views = WrongViews(CAPTIONS, lengths)
    rows, states = views.draw(np.random.default_rng(0), 40)
    assert set(rows.tolist()) == {1, 2, 3}
    assert states.shape == (40, 1, 1)
    assert (np.diff(rows) >= 0).all()
    front = states[rows == 2].flatten()
    assert set(front.tolist()) <= {
        float(len(f"a car, a bus, {view}")) for view in CONTRARY_VIEWS["front view"]
    }


def test_captions_without_views_are_refused():
    with pytest.raises(ValueError, match=r"contrast\.share"):
        WrongViews(["a red duck", "a view of a duck"], lengths)


def test_equal_losses_cost_tau_log_2_and_pull_both_ways_alike():
    right, wrong = torch.full((3,), 0.4, requires_grad=True), torch.full((3,), 0.4)
    wrong.requires_grad_()
    loss = contrast_loss(right, wrong, 0.05)
    assert float(loss.detach()) == pytest.approx(0.05 * math.log(2))
    loss.backward()
    torch.testing.assert_close(right.grad, torch.full((3,), 0.5 / 3))
    torch.testing.assert_close(wrong.grad, -right.grad)


def test_a_right_word_that_already_fits_better_is_left_alone():
    right, wrong = torch.tensor([0.2], requires_grad=True), torch.tensor([0.6])
    contrast_loss(right, wrong, 0.03).backward()
    assert float(right.grad) < 1e-5


@pytest.mark.parametrize(("batch_size", "images"), [(16, 6), (128, 48), (2, 0), (3, 1)])
def test_each_compared_image_takes_two_rows(batch_size: int, images: int):
    assert ContrastConfig(share=0.75).images(batch_size) == images


def test_a_comparison_of_the_whole_batch_is_refused():
    with pytest.raises(ValueError, match=r"contrast\.share is 1\.0"):
        ContrastConfig(share=1.0)
