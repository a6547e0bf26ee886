"""Training of an IP-Adapter: what is dropped, what learns, and that a killed training goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.ip_adapter import new_ip_adapter
from image_tools.personalization.ip_adapter_configs import ImageDropConfig, IPAdapterTrainingConfig
from image_tools.personalization.ip_adapter_files import read_ip_adapter
from image_tools.personalization.ip_adapter_training import (
    IPAdapterLoss,
    cache_image_prompts,
    draw_drops,
    train_ip_adapter,
)
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError
from tests.image_tools.personalization.subjects import images_of, load_tiny
from tests.image_tools.vision.tiny_clip import tiny_clip

TWENTY = IPAdapterTrainingConfig(
    TuningConfig(steps=20, learning_rate=1e-2, save_every=10, checkpoint_steps=(10,))
)
CHECKED = range(100, 104)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


@pytest.fixture(scope="module")
def clip():
    return ClipImages(tiny_clip())


@pytest.fixture(scope="module")
def data(prior, clip):
    """Four pictures that one caption cannot tell apart."""
    return cache_image_prompts(
        prior,
        CaptionedImages(images_of(4, size=32), ("a duck",) * 4),
        part="pooled",
        clip=clip,
        batch_size=4,
    )


def fresh(prior, clip, variant: str = "base"):
    width = clip.pooled_width if variant == "base" else clip.width
    generator = torch.Generator().manual_seed(0)
    return new_ip_adapter(prior.unet, variant, image_width=width, generator=generator)


@torch.no_grad()
def checked_loss(prior, adapter, data, config=TWENTY) -> float:
    """Over batches that training does not see."""
    loss = IPAdapterLoss(prior, adapter, data, config)
    return sum(float(loss(k, batch_generator(9, k))) for k in CHECKED) / len(CHECKED)


def test_twenty_steps_lower_the_loss_and_the_file_is_the_adapter(prior, clip, data, tmp_path):
    adapter = fresh(prior, clip)
    before = checked_loss(prior, adapter, data)
    unet = {name: tensor.clone() for name, tensor in prior.unet.state_dict().items()}
    result = train_ip_adapter(prior, adapter, data, TWENTY, tmp_path, identity="four")
    assert result.finished
    assert [path.name for path in result.files] == [
        "step-000010.safetensors",
        "ip_adapter.safetensors",
    ]
    after = checked_loss(prior, adapter, data)
    assert after < 0.98 * before
    loaded = read_ip_adapter(result.files[-1], prior.unet).adapter
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in adapter.state_dict().items())
    assert checked_loss(prior, loaded, data) == after
    assert all(torch.equal(t, prior.unet.state_dict()[n]) for n, t in unet.items())


def test_a_training_that_stops_goes_on_bit_for_bit(prior, clip, data, tmp_path):
    config = replace(TWENTY, loop=TuningConfig(steps=3, learning_rate=1e-2, save_every=1))
    whole, parts = fresh(prior, clip), fresh(prior, clip)
    train_ip_adapter(prior, whole, data, config, tmp_path / "whole", identity="four")
    stop = LoopHooks(should_stop=lambda: True)
    for _ in range(3):
        again = fresh(prior, clip)
        result = train_ip_adapter(
            prior, again, data, config, tmp_path / "parts", identity="four", hooks=stop
        )
        parts = again
    assert result.finished
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name])


@pytest.mark.parametrize("variant", ["base", "plus"])
def test_gradients_reach_all_of_the_adapter_and_nothing_else(prior, clip, data, variant):
    adapter = fresh(prior, clip, variant)
    if variant == "plus":
        data = cache_image_prompts(
            prior,
            CaptionedImages(images_of(2, size=32), ("a duck", "a mushroom")),
            part=adapter.image_proj.clip,
            clip=clip,
            batch_size=2,
        )
    IPAdapterLoss(prior, adapter, data, TWENTY)(0, batch_generator(0, 0)).backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in prior.unet.parameters())
    assert all(parameter.grad is None for parameter in clip.model.parameters())


def test_a_dropped_image_is_what_guidance_shows_without_one(prior, clip, data):
    adapter = fresh(prior, clip).requires_grad_(False)
    hidden = replace(TWENTY, drops=ImageDropConfig(image=1.0, text=0.0, both=0.0))
    nothing = replace(data, features=data.absent.select(torch.zeros(4, dtype=torch.long)))
    kept = replace(TWENTY, drops=ImageDropConfig(image=0.0, text=0.0, both=0.0))
    assert checked_loss(prior, adapter, data, hidden) == checked_loss(prior, adapter, nothing, kept)
    assert checked_loss(prior, adapter, data, kept) != checked_loss(prior, adapter, nothing, kept)
    assert float(data.absent.clip.abs().max()) == 0.0


def test_shares_of_what_is_dropped_are_disjoint_and_as_told():
    drops = ImageDropConfig(image=0.2, text=0.1, both=0.05)
    no_image, no_text = draw_drops(20_000, drops, torch.Generator().manual_seed(0))
    share = {
        "image": (no_image & ~no_text).float().mean(),
        "text": (no_text & ~no_image).float().mean(),
        "both": (no_image & no_text).float().mean(),
    }
    for name, value in share.items():
        assert abs(float(value) - getattr(drops, name)) < 0.01
    with pytest.raises(ValueError, match="at most 1 together"):
        ImageDropConfig(image=0.6, text=0.6)


def test_what_was_cached_is_what_the_encoders_say(prior, clip, data):
    images = images_of(4, size=32)
    torch.testing.assert_close(data.features.clip, clip.pooled(images))
    assert torch.equal(data.text.tokens[0], prior.text.encode(["a duck"]).tokens[0])
    batch = data(0, batch_generator(0, 0))
    assert len(batch.latents) == len(batch.text) == len(batch.features) == 4
    with pytest.raises(ShapeError, match="4 latents, 4 texts and 1 reference"):
        replace(batch, features=data.absent)
