"""Right view words against wrong ones: what is compared, in which order, and what it rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from studio.training.contrast import (
    OPPOSITE_VIEWS,
    ContrastConfig,
    WrongViews,
    contrast_loss,
    open_share,
)
from studio.training.denoiser import TEXT_WIDTH, DenoiserConfig, LatentCache, train_denoiser
from studio.training.loop import LoopConfig
from studio.training.text import MAX_TOKENS

SIDES = tuple(OPPOSITE_VIEWS)
CAPTIONS = [f"a red {kind}, {view}" for kind in ("mug", "duck", "apple") for view in SIDES]
CAPTIONS += ["a duck", "a blue duck, overhead view", "a mug left of a duck, front view"]


def latents() -> np.ndarray:
    """Sides of the duck differ by 1, of the mug by a half, of the apple not at all."""
    values = np.zeros((len(CAPTIONS), 4, 2, 2), dtype=np.float16)
    for row, caption in enumerate(CAPTIONS):
        size = 1.0 if "duck" in caption else 0.5 if "mug" in caption else 0.0
        values[row] = size * caption.endswith(("left side view", "front view"))
    return values


def rows_of(kind: dict[str, np.ndarray]) -> list[int]:
    """All rows of a kind, whatever their view."""
    return sorted(int(row) for rows in kind.values() for row in rows)


def lengths(captions: list[str]) -> torch.Tensor:
    """States that tell captions apart."""
    return torch.tensor([[[float(len(caption))]] for caption in captions])


def test_opposites_are_mutual():
    assert all(
        OPPOSITE_VIEWS[OPPOSITE_VIEWS[view]] == view != OPPOSITE_VIEWS[view] for view in SIDES
    )


def test_only_the_view_of_a_caption_is_exchanged():
    rng = np.random.default_rng(0)
    assert WrongViews.contradict("left, left side view", rng) == "left, right side view"
    wrong = {WrongViews.contradict("a car, a bus, front view", rng) for _ in range(50)}
    assert wrong == {"a car, a bus, back view", "a car, a bus, overhead view"}
    wrong = {WrongViews.contradict("a car, overhead view", rng) for _ in range(50)}
    assert wrong == {"a car, front view", "a car, back view"}


def test_kinds_come_in_the_order_of_how_their_sides_differ_and_flat_ones_not_at_all():
    views = WrongViews(CAPTIONS, latents(), lengths, least_difference=0.1)
    assert [rows_of(kind) for kind in views.kinds] == [[4, 5, 6, 7, 13], [0, 1, 2, 3]]


def test_captions_of_two_objects_or_without_a_view_are_not_compared():
    views = WrongViews(CAPTIONS, latents(), lengths, least_difference=0.0)
    compared = {row for kind in views.kinds for row in rows_of(kind)}
    assert compared == {*range(12), CAPTIONS.index("a blue duck, overhead view")}


def test_synonyms_are_of_the_same_kind():
    captions = [f"a {noun}, {v}" for noun, v in zip(("duck", "rubber duck") * 2, SIDES)]
    values = np.arange(4, dtype=np.float16).reshape(4, 1, 1, 1)
    views = WrongViews(captions, values, lengths, 0.1)
    assert [rows_of(kind) for kind in views.kinds] == [[0, 1, 2, 3]]


def test_draws_widen_from_the_first_kind_to_all():
    views = WrongViews(CAPTIONS, latents(), lengths, least_difference=0.1)
    rng = np.random.default_rng(0)
    duck = {4, 5, 6, 7, 13}
    for share, expected in ((0.0, duck), (0.5, duck), (0.51, duck | {0, 1, 2, 3})):
        rows, states = views.draw(rng, 64, share)
        assert set(rows.tolist()) == expected
        assert (np.diff(rows) >= 0).all()
        told = [len(CAPTIONS[row]) for row in rows]
        assert states.shape == (64, 1, 1)
        assert (states.flatten() != torch.tensor(told)).all()


def test_views_are_drawn_alike_often_though_few_images_are_from_above():
    captions = [*CAPTIONS, *(f"a {color} duck, front view" for color in ("red", "blue") * 20)]
    values = np.concatenate([latents(), np.ones((40, 4, 2, 2), dtype=np.float16)])
    views = WrongViews(captions, values, lengths, least_difference=0.1)
    rows, _ = views.draw(np.random.default_rng(0), 2000, 0.0)
    assert (rows == 13).mean() == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.5), (0.3, 1.0), (1.0, 1.0)]
)
def test_kinds_open_evenly_between_two_moments(progress: float, share: float):
    assert open_share(progress, (0.1, 0.3)) == pytest.approx(share)


def test_objects_without_sides_are_refused():
    with pytest.raises(ValueError, match=r"contrast\.share to 0"):
        WrongViews(CAPTIONS, np.zeros_like(latents()), lengths, least_difference=0.1)
    with pytest.raises(ValueError, match="opposite sides"):
        WrongViews(["a red duck, front view"], latents()[:1], lengths, least_difference=0.1)


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


def test_both_captions_are_read_in_the_same_noise(tmp_path):
    """So equal captions cost exactly tau log 2, whatever the network says."""
    text = np.random.default_rng(0).standard_normal((2, MAX_TOKENS, TEXT_WIDTH))
    np.save(tmp_path / "text.npy", text.astype(np.float16))
    np.save(tmp_path / "text_index.npy", np.ones(len(CAPTIONS), dtype=np.int64))
    noisy = np.random.default_rng(1).standard_normal((len(CAPTIONS), 4, 16, 16))
    np.save(tmp_path / "latents.npy", noisy.astype(np.float16))
    cache = LatentCache(tmp_path)
    states = torch.from_numpy(np.array(cache.text[1])).float()
    views = WrongViews(CAPTIONS, latents(), lambda said: states.expand(len(said), -1, -1), 0.1)

    def first_loss(weight: float) -> float:
        contrast = ContrastConfig(share=0.75, weight=weight, temperature=0.05)
        loop = LoopConfig(steps=1, log_every=1)
        config = DenoiserConfig((16, 16, 16), heads=2, batch_size=8, contrast=contrast, loop=loop)
        train_denoiser(
            config,
            cache,
            tmp_path / f"weight {weight}",
            seed=0,
            device=torch.device("cpu"),
            log=lambda _: None,
            views=views,
        )
        return float((tmp_path / f"weight {weight}" / "log.csv").read_text().split(",")[1])

    assert first_loss(4.0) - first_loss(0.0) == pytest.approx(4 * 0.05 * math.log(2), abs=5e-6)
