"""Pulling renders to what an autoencoder reads them as: exact gradients, and what they are for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from guidance.configs import PlainPromptsConfig, SDSConfig
from guidance.prompts import build_view_prompts
from guidance.read_back import read_back_loss
from guidance.sds import SDSGuidance
from tests.guidance.test_prompts import _angles
from tests.guidance.test_sds import GaussianPrior


class ColourBlindPrior(GaussianPrior):
    """Its autoencoder keeps the brightness of a pixel and reads every pixel as grey."""

    def encode_images(self, images: Tensor) -> Tensor:
        return images.mean(-1, keepdim=True).movedim(-1, 1)

    def decode_latents(self, latents: Tensor) -> Tensor:
        return latents.movedim(1, -1).expand(-1, -1, -1, 3)


def test_the_gradient_is_the_distance_to_what_was_read():
    prior = ColourBlindPrior(0.5, 0.1)
    images = torch.rand(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    read_back_loss(prior, images, prior.encode_images(images)).backward()
    expected = images.detach() - images.detach().mean(-1, keepdim=True)
    torch.testing.assert_close(images.grad, expected / 2)


def test_an_image_that_is_read_as_it_is_is_left_alone():
    prior = GaussianPrior(0.5, 0.1)
    images = torch.rand(1, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    loss = read_back_loss(prior, images, prior.encode_images(images))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert images.grad.abs().max() == 0.0


def test_images_of_different_sizes_are_compared_at_the_smaller_one():
    prior = GaussianPrior(0.5, 0.1)
    images = torch.zeros(1, 4, 4, 3, requires_grad=True)
    loss = read_back_loss(prior, images, torch.ones(1, 3, 8, 8))
    assert float(loss.detach()) == pytest.approx(0.5 * 4 * 4 * 3)
    loss = read_back_loss(prior, images, torch.ones(1, 3, 2, 2))
    assert float(loss.detach()) == pytest.approx(0.5 * 2 * 2 * 3)
    loss.backward()
    assert float(images.grad.sum()) == pytest.approx(-2 * 2 * 3)


def test_detail_that_is_finer_than_what_was_read_is_kept():
    prior = GaussianPrior(0.5, 0.1)
    stripes = torch.tensor([0.2, 0.8]).repeat(8).reshape(1, 1, 16, 1).expand(1, 16, 16, 3)
    images = stripes.clone().requires_grad_()
    read_back_loss(prior, images, torch.full((1, 3, 4, 4), 0.5)).backward()
    inside = images.grad[:, 4:-4, 4:-4]
    assert inside.abs().max() < 1e-3


def test_a_colour_that_the_encoder_does_not_see_goes_away_only_when_it_is_read_back():
    prior = ColourBlindPrior(0.7, 0.05)
    prompts = build_view_prompts(PlainPromptsConfig(), prior, "a grey castle", "")
    rule = SDSGuidance(SDSConfig(guidance_scale=1.0), prior, prompts)
    magenta = torch.tensor([0.94, 0.29, 0.89])

    def optimised(weight: float) -> Tensor:
        images = magenta.expand(1, 2, 2, 3).clone().requires_grad_()
        optimizer = torch.optim.SGD([images], lr=0.05)
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            guided = rule(images, _angles((0.0, 15.0)), fraction=0.0, generator=generator)
            optimizer.zero_grad()
            (guided.loss + weight * guided.read_back()).backward()
            optimizer.step()
        return images.detach().mean((0, 1, 2))

    blind, seen = optimised(0.0), optimised(1.0)
    assert float(blind[0] - blind[1]) == pytest.approx(0.65, abs=1e-3), "no gradient reaches colour"
    assert float(seen.max() - seen.min()) < 1e-3
    assert float(seen.mean()) == pytest.approx(0.7, abs=0.1), "and the prior is obeyed all the same"
