"""Captioned images: cached latents are the posterior's, and batches are fair and repeatable."""

from __future__ import annotations

import pytest
import torch

from image_tools.personalization.captioned import (
    CaptionedImages,
    cache_latents,
    encode_text,
    rows_of_batch,
)
from renderers.errors import StudioError
from tests.image_tools.personalization.subjects import images_of, load_tiny


def test_cached_latents_are_draws_from_the_posterior(tiny_pipelines):
    prior, images = load_tiny(tiny_pipelines), images_of(3)
    cache = cache_latents(prior, images, mirrored=False)
    torch.testing.assert_close(cache.mean, prior.encode_images(images))
    posterior = prior.vae.encode(images.movedim(-1, 1) * 2 - 1).latent_dist
    torch.testing.assert_close(cache.std, posterior.std * prior.vae.config.scaling_factor)
    rows = [1] * 400
    draws = cache.draw(rows, torch.Generator().manual_seed(0))
    deviation = (draws - cache.mean[1]).std(dim=0) / cache.std[1]
    assert deviation.mean() == pytest.approx(1.0, abs=0.02)


def test_mirrored_photos_are_encoded_mirrored(tiny_pipelines):
    prior, images = load_tiny(tiny_pipelines), images_of(2)
    cache = cache_latents(prior, images, mirrored=True)
    assert len(cache) == 2
    torch.testing.assert_close(cache.mean[2:], prior.encode_images(images.flip(2)))
    draws = cache.draw([0] * 64, torch.Generator().manual_seed(0))
    to_plain, to_mirrored = ((draws - cache.mean[k]).abs().sum((1, 2, 3)) for k in (0, 2))
    nearer_mirror = to_mirrored < to_plain
    assert 0.3 < nearer_mirror.float().mean() < 0.7


def test_every_image_comes_once_in_each_round():
    rows = [row for k in range(15) for row in rows_of_batch(5, 2, seed=3, batch=k)]
    rounds = [rows[k : k + 5] for k in range(0, 30, 5)]
    assert all(sorted(turn) == [0, 1, 2, 3, 4] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1
    assert rows_of_batch(5, 2, seed=3, batch=9) == rows[18:20]
    assert sorted(rows_of_batch(2, 6, seed=0, batch=0)) == [0, 0, 0, 1, 1, 1]


@torch.no_grad()
def test_text_is_encoded_as_the_prior_does(tiny_pipelines):
    for kind in ("sd1", "sdxl", "pocket"):
        prior = load_tiny(tiny_pipelines, kind)
        prompts = ["a duck", "a red mushroom"]
        ours, theirs = encode_text(prior, prompts), prior.encode_prompt(prompts)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert kind != "sdxl" or torch.equal(ours.pooled, theirs.pooled)


@torch.no_grad()
def test_a_caption_that_was_dropped_is_what_sampling_leads_away_from(tiny_pipelines):
    """Zeros for SDXL, pooled too, and the encoded empty prompt for all others."""
    for kind in ("sd1", "sd2_v", "sdxl", "pocket"):
        prior = load_tiny(tiny_pipelines, kind)
        (dropped, said), expected = (
            (encode_text(prior, ["", "a duck"]).select(torch.tensor([k])) for k in (0, 1)),
            prior.encode_negative([""]),
        )
        assert torch.equal(dropped.tokens, expected.tokens), kind
        assert torch.equal(said.tokens, prior.encode_prompt(["a duck"]).tokens)
        assert kind != "sdxl" or torch.equal(dropped.pooled, expected.pooled)


def test_captions_must_fit_the_images():
    with pytest.raises(StudioError, match=r"2 images came with 1 captions - .* one caption per"):
        CaptionedImages(images_of(2), ("a duck",))
