"""Training of a ControlNet: it starts as nothing, learns, resumes bit for bit, is a stock one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.control.control_configs import ControlConfig
from image_tools.control.control_weights import read_controlnet
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.controlnet_training import (
    ControlBatch,
    ControlNetLoss,
    new_controlnet,
    train_controlnet,
)
from image_tools.control.training_configs import ControlTrainingConfig
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from renderers.errors import ShapeError, StudioError
from tests.image_tools.personalization.subjects import load_tiny

CONFIG = ControlTrainingConfig(
    TuningConfig(steps=4, learning_rate=1e-3, save_every=2, log_every=2, checkpoint_steps=(2,))
)


def batches(batch: int, generator: torch.Generator) -> ControlBatch:
    """Images white on the left or on the right, as conditions tell and captions do not."""
    return batches_of(16, generator)


def batches_of(size: int, generator: torch.Generator) -> ControlBatch:
    """The same at another size."""
    left = (torch.arange(size) < size // 2).float().reshape(1, 1, size, 1)
    is_left = torch.randint(2, (4, 1, 1, 1), generator=generator).float()
    images = (is_left * left + (1.0 - is_left) * (1.0 - left)).expand(4, size, size, 3)
    return ControlBatch(images, ("a duck",) * 4, images)


@pytest.fixture
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.mark.parametrize("kind", ["sd1", "sd2_v", "sdxl", "pocket"])
def test_the_first_loss_is_the_plain_priors_and_reaches_only_the_controlnet(tiny_pipelines, kind):
    prior = load_tiny(tiny_pipelines, kind)
    controlnet = new_controlnet(prior)
    config = replace(CONFIG, empty_prompts=0.0)
    loss = ControlNetLoss(prior, controlnet, lambda _, g: batches_of(prior.image_size, g), config)
    controlnet.requires_grad_(True)
    value = loss(0, batch_generator(0, 0))
    generator = batch_generator(0, 0)
    sample = batches_of(prior.image_size, generator)
    torch.rand(4, generator=generator)
    with torch.no_grad():
        mean, std = prior.encode_posterior(sample.images)
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        noisy = draw_noisy(prior, latents, generator)
        text = encode_text(prior, sample.captions)
        expected = denoising_errors(prior, noisy, text).mean()
    torch.testing.assert_close(value.detach(), expected)
    value.backward()
    assert controlnet.controlnet_mid_block.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in prior.unet.parameters())


def test_training_lowers_the_error_and_makes_conditions_count(prior, tmp_path):
    """On noise never trained on; that conditions are followed takes more steps than a test has."""
    tuning = TuningConfig(steps=60, learning_rate=1e-2, save_every=60, log_every=60)
    config = ControlTrainingConfig(tuning, empty_prompts=0.5)
    controlnet = new_controlnet(prior)
    before = {name: p.clone() for name, p in prior.unet.named_parameters()}
    train_controlnet(prior, controlnet, batches, config, tmp_path, identity="sides")
    assert all(torch.equal(p, before[name]) for name, p in prior.unet.named_parameters())
    assert not any(p.requires_grad for p in controlnet.parameters())
    assert controlnet.controlnet_cond_embedding.conv_out.weight.abs().max() > 1e-3
    controlled = ControlledPrior(prior, [Control(controlnet, torch.zeros(1, 16, 16, 3))])
    told = _error(prior, controlled, lambda condition: condition)
    assert told < 0.95 * _error(prior, prior, None)
    assert abs(told - _error(prior, controlled, lambda condition: 1.0 - condition)) > 1e-5


@torch.no_grad()
def _error(prior, predictor, change) -> float:
    """Mean error over batches never trained on, with changed conditions."""
    total = 0.0
    for batch in range(8):
        generator = batch_generator(99, batch)
        sample = batches(batch, generator)
        if change is not None:
            predictor.show([change(sample.conditions)])
        noisy = draw_noisy(prior, prior.encode_images(sample.images), generator)
        text = encode_text(prior, sample.captions)
        total += float(denoising_errors(predictor, noisy, text).mean())
    return total / 8


def test_an_interrupted_training_goes_on_bit_for_bit(prior, tmp_path):
    whole, parts = new_controlnet(prior), new_controlnet(prior)
    parts.load_state_dict(whole.state_dict())
    start = {name: t.clone() for name, t in whole.state_dict().items()}
    result = train_controlnet(prior, whole, batches, CONFIG, tmp_path / "whole", identity="levels")
    assert result.finished
    stop = LoopHooks(should_stop=lambda: True)
    folder = tmp_path / "parts"
    first = train_controlnet(prior, parts, batches, CONFIG, folder, identity="levels", hooks=stop)
    assert (first.finished, first.step, first.files) == (False, 1, ())
    parts.load_state_dict(start)
    second = train_controlnet(prior, parts, batches, CONFIG, folder, identity="levels")
    assert [path.name for path in second.files] == ["step-000002", "controlnet"]
    assert all(torch.equal(t, whole.state_dict()[n]) for n, t in parts.state_dict().items())
    with pytest.raises(StudioError, match="holds a training with other settings"):
        train_controlnet(prior, parts, batches, CONFIG, folder, identity="depth")


def test_what_is_written_is_a_stock_controlnet(prior, tmp_path):
    from diffusers import ControlNetModel

    controlnet = new_controlnet(prior)
    config = replace(CONFIG, checkpointing=True, min_snr_gamma=5.0)
    result = train_controlnet(prior, controlnet, batches, config, tmp_path, identity="levels")
    stock = ControlNetModel.from_pretrained(result.files[-1], local_files_only=True)
    read = read_controlnet(ControlConfig(weights=str(result.files[-1])))
    for name, tensor in controlnet.state_dict().items():
        assert torch.equal(stock.state_dict()[name], tensor)
        assert torch.equal(read.state_dict()[name], tensor)
    assert not controlnet.is_gradient_checkpointing
    assert not prior.unet.is_gradient_checkpointing


def test_a_new_controlnet_has_the_strides_of_the_vae(tiny_pipelines):
    """The tiny pocket's VAE has factor 4, the others' 2."""
    for kind, widths in (("sd1", (16, 32)), ("pocket", (16, 32, 96))):
        controlnet = new_controlnet(load_tiny(tiny_pipelines, kind), channels=1)
        assert controlnet.config.conditioning_embedding_out_channels == widths
        assert controlnet.config.conditioning_channels == 1


@pytest.mark.wrong_shapes
def test_wrong_batches_and_settings_are_refused():
    images = torch.zeros(2, 16, 16, 3)
    with pytest.raises(ShapeError, match="2 images, 1 captions and 2 conditions"):
        ControlBatch(images, ("a duck",), images)
    with pytest.raises(ValueError, match=r"empty_prompts is 1.5 - expected 0 to 1"):
        ControlTrainingConfig(empty_prompts=1.5)
    with pytest.raises(ValueError, match=r"min_snr_gamma is -1.0 - expected above 0"):
        ControlTrainingConfig(min_snr_gamma=-1.0)
