"""Right captions against wrong ones: what is compared, and what it rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from studio.training.contrast import ContrastConfig, WrongWords, contrast_loss, open_share
from studio.training.contrast_bindings import exchanged
from studio.training.denoiser import TEXT_WIDTH, DenoiserConfig, LatentCache, train_denoiser
from studio.training.loop import LoopConfig
from studio.training.text import MAX_TOKENS
from tests.studio.training.test_contrast_views import CAPTIONS, latents

PAIR = "a red mug left of a blue duck, front view"
VIEWS = ContrastConfig(share=0.75, least_difference=0.1)


def lengths(captions: list[str]) -> torch.Tensor:
    """States that tell captions apart."""
    return torch.tensor([[[float(len(caption))]] for caption in captions])


def test_a_share_of_the_compared_images_shows_two_objects():
    captions = [*CAPTIONS, PAIR]
    values = np.concatenate([latents(), np.zeros((1, 4, 2, 2), dtype=np.float16)])
    config = ContrastConfig(share=0.75, bindings=0.25, least_difference=0.1)
    words = WrongWords(config, captions, values, lengths)
    rng, pairs = np.random.default_rng(0), 0
    for _ in range(50):
        rows, states = words.draw(rng, 20, 1.0)
        of_pair = rows == captions.index(PAIR)
        pairs += int(of_pair.sum())
        wrong = {float(len(text)) for text in exchanged(PAIR)}
        assert set(states.flatten()[of_pair].tolist()) <= wrong
        assert len(rows) == len(states) == 20
    assert pairs / 1000 == pytest.approx(0.25, abs=0.05)


def test_without_a_share_of_bindings_no_pair_is_needed():
    words = WrongWords(VIEWS, CAPTIONS, latents(), lengths)
    rows, _ = words.draw(np.random.default_rng(0), 30, 0.0)
    assert set(rows.tolist()) == {4, 5, 6, 7, 13}
    with pytest.raises(ValueError, match=r"contrast\.bindings to 0"):
        WrongWords(ContrastConfig(bindings=0.5), CAPTIONS, latents(), lengths)


@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.5), (0.3, 1.0), (1.0, 1.0)]
)
def test_kinds_open_evenly_between_two_moments(progress: float, share: float):
    assert open_share(progress, (0.1, 0.3)) == pytest.approx(share)


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
    with pytest.raises(ValueError, match=r"contrast\.bindings is 1\.0"):
        ContrastConfig(bindings=1.0)


def test_both_captions_are_read_in_the_same_noise(tmp_path):
    """So equal captions cost exactly tau log 2, whatever the network says."""
    text = np.random.default_rng(0).standard_normal((2, MAX_TOKENS, TEXT_WIDTH))
    np.save(tmp_path / "text.npy", text.astype(np.float16))
    np.save(tmp_path / "text_index.npy", np.ones(len(CAPTIONS), dtype=np.int64))
    noisy = np.random.default_rng(1).standard_normal((len(CAPTIONS), 4, 16, 16))
    np.save(tmp_path / "latents.npy", noisy.astype(np.float16))
    cache = LatentCache(tmp_path)
    states = torch.from_numpy(np.array(cache.text[1])).float()
    words = WrongWords(VIEWS, CAPTIONS, latents(), lambda said: states.expand(len(said), -1, -1))

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
            wrong=words,
        )
        return float((tmp_path / f"weight {weight}" / "log.csv").read_text().split(",")[1])

    assert first_loss(4.0) - first_loss(0.0) == pytest.approx(4 * 0.05 * math.log(2), abs=5e-6)
