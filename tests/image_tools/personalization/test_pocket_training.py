"""A few steps of each trainer on the shipped pocket model: the loss of a fixed batch falls."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.configs import PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.captions import plain_captions
from image_tools.personalization.dco import train_dco
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import train_dreambooth
from image_tools.personalization.dreambooth_configs import (
    BatchConfig,
    DcoConfig,
    DreamBoothConfig,
    DreamBoothLoraConfig,
    LoraShapeConfig,
)
from image_tools.personalization.dreambooth_lora import train_dreambooth_lora
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from tests.image_tools.personalization.subjects import images_of

LOOP = TuningConfig(steps=8, learning_rate=2e-3, save_every=100, log_every=4)
BATCH = BatchConfig(size=2)
LORA = LoraShapeConfig(rank=8)
CAPTION = "a photo of sks duck"


@pytest.fixture
def prior():
    return load_prior(PocketPriorConfig(), torch.device("cpu"))


@torch.no_grad()
def _fixed_loss(prior, images) -> float:
    """The error for the subject's caption on always the same noisy latents."""
    generator = batch_generator(99, 0)
    noisy = draw_noisy(prior, prior.encode_images(images).repeat(4, 1, 1, 1), generator)
    return float(denoising_errors(prior, noisy, prior.encode_prompt([CAPTION])).mean())


@pytest.mark.parametrize("method", ["dreambooth", "dreambooth_lora", "dco"])
def test_the_loss_of_a_fixed_batch_falls(prior, tmp_path, method):
    images = images_of(2, size=64)
    subject = CaptionedImages(images, (CAPTION,) * 2)
    before, seen = _fixed_loss(prior, images), []
    hooks = LoopHooks(after_step=lambda _: seen.append(_fixed_loss(prior, images)))
    if method == "dreambooth":
        config = DreamBoothConfig(batch=BATCH, loop=replace(LOOP, learning_rate=2e-4))
        train_dreambooth(prior, subject, None, config, tmp_path, hooks=hooks)
    elif method == "dreambooth_lora":
        config = DreamBoothLoraConfig(lora=LORA, batch=BATCH, loop=LOOP)
        train_dreambooth_lora(prior, subject, None, config, tmp_path, hooks=hooks)
    else:
        captions = plain_captions(2, subject="sks duck", word="a duck", template="a photo of {}")
        config = DcoConfig(lora=LORA, batch=BATCH, loop=LOOP)
        train_dco(prior, images, captions, config, tmp_path, hooks=hooks)
    assert seen[-1] < 0.98 * before
    assert torch.tensor(seen).isfinite().all()
