"""IDM-VTON's trainers: what learns, what stays, and samples that are varied as they should be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora_apply import attach_to_prior, detach_from_prior
from image_tools.diffusion.lora_files import read_lora
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.tryon.augment import augmented, mirrored, moved, recolored
from image_tools.tryon.idm_vton_configs import (
    AugmentationConfig,
    IdmCustomizationConfig,
    IdmTrainingConfig,
)
from image_tools.tryon.idm_vton_training import (
    IdmVtonLoss,
    customize_idm_vton,
    train_idm_vton,
)
from image_tools.tryon.samples import TryOnSample
from renderers.errors import StudioError
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_idm import SIZE, tiny_idm

CPU = torch.device("cpu")
STEPS = TuningConfig(steps=20, learning_rate=2e-3, save_every=20)
ONES = torch.ones(2)


@pytest.fixture
def tool(tiny_pipelines):
    return tiny_idm(load_folder(tiny_pipelines["sdxl"], CPU))


@pytest.fixture(scope="module")
def sample() -> TryOnSample:
    return tiny_sample(rows=2, size=SIZE)


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_loss(tool, sample) -> float:
    """Over noise that training does not see."""
    loss = IdmVtonLoss(tool, lambda *_: sample)
    with torch.no_grad():
        draws = [loss(k, torch.Generator().manual_seed(1000 + k)) for k in range(3)]
    return float(torch.stack(draws).mean())


def state_of(module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before) -> set[str]:
    return {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}


def test_captions_of_batches_are_not_kept(tool, sample):
    tool.denoiser._encoded.clear()
    IdmVtonLoss(tool, lambda *_: sample)(0, noise(0))
    assert not tool.denoiser._encoded


def test_gradients_reach_tryonnet_and_its_image_prompt_alone(tool, sample):
    trained = (tool.denoiser.unet, tool.prompted.adapter)
    for module in trained:
        module.requires_grad_(True)
    IdmVtonLoss(tool, lambda *_: sample)(0, noise(0)).backward()
    for module in trained:
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    assert all(p.grad is None for p in tool.garment_net.parameters())


@pytest.mark.slow
def test_training_changes_tryonnet_and_its_image_prompt_alone(tool, sample, tmp_path):
    config = IdmTrainingConfig(loop=STEPS, dropout=0.1)
    frozen = (tool.garment_net, tool.clip.model, tool.denoiser.vae)
    before, fixed = mean_loss(tool, sample), [state_of(module) for module in frozen]
    adapter = state_of(tool.prompted.adapter)
    result = train_idm_vton(tool, lambda *_: sample, config, tmp_path, identity="one")
    assert result.files == (tmp_path / "unet",)
    assert mean_loss(tool, sample) < before
    assert changed(tool.prompted.adapter, adapter) == set(adapter)
    assert not any(changed(*pair) for pair in zip(frozen, fixed, strict=True))


@pytest.mark.slow
def test_a_garment_is_learned_by_the_decoders_attention_alone(tool, sample, tmp_path):
    config = IdmCustomizationConfig(loop=replace(STEPS, learning_rate=2e-2))
    before, state = mean_loss(tool, sample), state_of(tool.denoiser.unet)
    result = customize_idm_vton(tool, sample, config, tmp_path)
    assert not changed(tool.denoiser.unet, state)
    assert mean_loss(tool, sample) == before
    lora = read_lora(result.files[-1])
    names = [name for _, name, _ in lora.deltas()]
    assert names
    assert all(name.startswith("up_blocks.") and ".attn" in name for name in names)
    attach_to_prior(tool.denoiser, lora, name="garment")
    assert mean_loss(tool, sample) < before
    detach_from_prior(tool.denoiser, "garment")


def test_rows_without_garment_are_the_unconditional_half(tool, sample):
    """With all rows dropped the loss depends neither on the garment nor on its words."""
    shirt = sample.garments[0]
    other = replace(shirt, images=1.0 - shirt.images, captions=("a coat",) * 2)
    losses = [
        IdmVtonLoss(tool, lambda *_, s=s: s, dropout=1.0)(0, torch.Generator().manual_seed(0))
        for s in (sample, replace(sample, garments=(other,)))
    ]
    assert torch.allclose(*losses)


def test_leffas_loss_counts_where_there_is_little_noise(tool, sample):
    worn = replace(sample, worn_mask=sample.mask)
    plain, flow = (IdmVtonLoss(tool, lambda *_: worn, flow_weight=weight) for weight in (0.0, 1.0))
    with torch.no_grad():
        more = [float(flow(0, noise(seed)) - plain(0, noise(seed))) for seed in range(4)]
    assert min(more) > -1e-5
    assert max(more) > 1e-2
    with pytest.raises(StudioError, match="needs the people's worn_mask"):
        IdmVtonLoss(tool, lambda *_: sample, flow_weight=1.0)(0, torch.Generator())
    with pytest.raises(ValueError, match="flow_weight and checkpointing"):
        IdmTrainingConfig(flow_weight=1e-3, checkpointing=True)


def test_nothing_changes_where_no_change_is_asked_for(sample):
    config = AugmentationConfig(mirrored=0.0, recolored=0.0, scaled=0.0, shifted=0.0)
    same = augmented(sample, torch.Generator().manual_seed(0), config)
    assert torch.allclose(same.person, sample.person, atol=1e-6)
    assert torch.equal(same.mask, sample.mask)
    assert torch.allclose(same.garments[0].images, sample.garments[0].images, atol=1e-6)


def test_mirror_images_are_of_everything(sample):
    first = torch.tensor([True, False])
    flipped = mirrored(sample, first)
    assert torch.equal(flipped.person[0], sample.person[0].flip(1))
    assert torch.equal(flipped.person[1], sample.person[1])
    assert torch.equal(flipped.garments[0].images[0], sample.garments[0].images[0].flip(1))
    assert flipped.keypoints is None
    assert torch.equal(mirrored(flipped, first).mask, sample.mask)


def test_colours_turn_around_grey(sample):
    third = recolored(sample, ONES, ONES, ONES, ONES / 3.0)
    inside = (third.person > 0.0) & (third.person < 1.0)
    expected = sample.person.roll(1, dims=3)  # red becomes green, green blue, blue red
    assert torch.allclose(third.person[inside], expected[inside], atol=1e-5)
    grey = recolored(sample, ONES, ONES, 0.0 * ONES, 0.0 * ONES)
    assert torch.allclose(grey.person[..., 0], grey.person[..., 2], atol=1e-5)
    flat = recolored(sample, ONES, 0.0 * ONES, ONES, 0.0 * ONES)
    assert flat.person.flatten(1).std(dim=1).max() < 1e-5


def test_people_move_by_whole_pixels_exactly(sample):
    shift = torch.tensor([[4.0 / SIZE[1], 0.0], [0.0, -6.0 / SIZE[0]]])
    there = moved(sample, ONES, shift)
    assert torch.allclose(there.person[0, :, 4:], sample.person[0, :, :-4], atol=1e-5)
    assert torch.allclose(there.person[1, :-6], sample.person[1, 6:], atol=1e-5)
    assert torch.equal(there.mask[0, :, 4:], sample.mask[0, :, :-4])
    assert there.mask[0, :, :4].abs().max() == 0.0
    assert torch.equal(there.garments[0].images, sample.garments[0].images)
    larger = moved(sample, 2.0 * ONES, torch.zeros(2, 2))
    assert larger.mask.sum() > sample.mask.sum()
