"""Training of InstantID: what it reaches, that it learns, what it writes, how photos are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.instant_id import InstantIDPrior, new_instant_id
from image_tools.personalization.instant_id_configs import InstantIDTrainingConfig
from image_tools.personalization.instant_id_files import read_instant_id
from image_tools.personalization.instant_id_training import (
    FaceBatches,
    InstantIDBatch,
    InstantIDLoss,
    crop_face,
    train_instant_id,
)
from image_tools.personalization.ip_adapter_configs import ImageDropConfig
from image_tools.personalization.loop import LoopHooks, batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.vision.faces import load_face_image
from image_tools.vision.mesh_faces import MeshFaceAnalyzer
from renderers.errors import ShapeError
from tests.image_tools.personalization.subjects import load_tiny
from tests.image_tools.personalization.tiny_instant_ids import IDENTITY_WIDTH, person

PORTRAIT = Path(__file__).parents[1] / "vision" / "portrait.jpg"
STEPS = 20
LOOP = TuningConfig(steps=STEPS, learning_rate=3e-3, save_every=10, log_every=10)
CONFIG = InstantIDTrainingConfig(LOOP, min_snr_gamma=5.0)


def batches(batch: int, generator: torch.Generator) -> InstantIDBatch:
    """Two people: one always white on the left, one on the right; landmarks say nothing."""
    left = (torch.arange(16) < 8).float().reshape(1, 1, 16, 1)
    who = torch.randint(2, (4,), generator=generator)
    is_left = who.float().reshape(4, 1, 1, 1)
    images = (is_left * left + (1.0 - is_left) * (1.0 - left)).expand(4, 16, 16, 3)
    return InstantIDBatch(images, ("a duck",) * 4, person(count=2)[who], torch.zeros(4, 16, 16, 3))


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_tiny(tiny_pipelines, "sd1")


def new_parts(prior):
    generator = torch.Generator().manual_seed(3)
    return new_instant_id(prior, identity_width=IDENTITY_WIDTH, generator=generator, width=64)


@torch.no_grad()
def error(prior, tool) -> float:
    """Mean error over batches that training never saw."""
    total = 0.0
    for batch in range(3):
        generator = batch_generator(99, batch)
        sample = batches(batch, generator)
        tool.show_keypoints(sample.keypoints)
        tool.show_identity(sample.identities)
        noisy = draw_noisy(prior, prior.encode_images(sample.images), generator)
        text = encode_text(prior, sample.captions)
        total += float(denoising_errors(tool, noisy, text).mean())
    return total / 3


def test_twenty_steps_learn_and_are_read_back(prior, tmp_path):
    parts = new_parts(prior)
    before = {name: p.clone() for name, p in prior.unet.named_parameters()}
    tool = InstantIDPrior(prior, parts, torch.zeros(1, 16, 16, 3), scale=1.0, control_scale=1.0)
    first = error(prior, tool)
    result = train_instant_id(prior, parts, batches, CONFIG, tmp_path, identity="two people")
    assert result.finished
    assert error(prior, tool) < first
    assert all(torch.equal(p, before[name]) for name, p in prior.unet.named_parameters())
    assert not any(p.requires_grad for p in [*parts.adapter.parameters(), *parts.net.parameters()])
    read = read_instant_id(result.files[-1], prior.unet)
    for ours, theirs in ((parts.adapter, read.adapter), (parts.net, read.net)):
        assert all(torch.equal(t, theirs.state_dict()[k]) for k, t in ours.state_dict().items())


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_bit_for_bit(prior, tmp_path):
    config = replace(CONFIG, loop=replace(LOOP, steps=3, checkpoint_steps=(2,)), checkpointing=True)
    whole, split = new_parts(prior), new_parts(prior)
    split.net.load_state_dict(whole.net.state_dict())
    start = {name: t.clone() for name, t in whole.net.state_dict().items()}
    train_instant_id(prior, whole, batches, config, tmp_path / "whole", identity="x")
    stop, folder = LoopHooks(should_stop=lambda: True), tmp_path / "split"
    first = train_instant_id(prior, split, batches, config, folder, identity="x", hooks=stop)
    assert (first.finished, first.step) == (False, 1)
    split.net.load_state_dict(start)
    second = train_instant_id(prior, split, batches, config, folder, identity="x")
    assert [path.name for path in second.files] == ["step-000002", "instant-id"]
    for ours, theirs in ((whole.adapter, split.adapter), (whole.net, split.net)):
        assert all(torch.equal(t, theirs.state_dict()[k]) for k, t in ours.state_dict().items())


def test_gradients_reach_tokens_keys_and_the_controlnet_alone(prior):
    parts = new_parts(prior)
    loss = InstantIDLoss(prior, parts, batches, CONFIG)
    for part in (parts.adapter, parts.net):
        part.requires_grad_(True)
    loss(0, batch_generator(0, 0)).backward()
    adapter = parts.adapter
    assert adapter.image_proj.proj_in.weight.grad.abs().sum() > 0
    assert adapter.ip_adapter["1"].to_v_ip.weight.grad.abs().sum() > 0
    assert parts.net.controlnet_mid_block.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in prior.unet.parameters())


def test_hidden_identities_are_zeros_and_shares_are_disjoint(prior):
    parts = new_parts(prior)
    drops = ImageDropConfig(image=0.2, text=0.3, both=0.1)
    loss = InstantIDLoss(prior, parts, batches, replace(CONFIG, drops=drops))
    no_identity, no_text = loss._hidden(20_000, torch.Generator().manual_seed(0))
    shares = [
        float(rows.float().mean())
        for rows in (no_identity & ~no_text, ~no_identity & no_text, no_identity & no_text)
    ]
    assert shares == pytest.approx([0.2, 0.3, 0.1], abs=0.01)
    everyone = InstantIDLoss(
        prior, parts, batches, replace(CONFIG, drops=ImageDropConfig(image=1.0, text=0.0, both=0.0))
    )
    with torch.no_grad():
        everyone(0, batch_generator(0, 0))
    told, untold = everyone.tool.controlled.controls[0].context
    assert torch.equal(told, untold)


def test_photos_are_cut_together_with_their_landmarks():
    """A picture of its own coordinates says where each landmark went."""
    rows, columns = torch.meshgrid(torch.arange(90.0), torch.arange(120.0), indexing="ij")
    image = torch.stack([columns / 120.0, rows / 90.0, torch.zeros(90, 120)], dim=-1)
    kps = torch.tensor([[50.0, 30.0], [70.0, 30.0], [60.0, 40.0], [52.0, 50.0], [68.0, 50.0]])
    sides = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        part, moved = crop_face(image, kps, size=64, generator=generator)
        assert part.shape == (64, 64, 3)
        assert moved.min() > 4.0
        assert moved.max() < 60.0
        for before, after in zip(kps, moved, strict=True):
            x, y = after.int().tolist()
            seen = part[y, x, :2] * torch.tensor([120.0, 90.0])
            assert (seen - before).abs().max() < 2.5
        sides.add(round(float(moved[1, 0] - moved[0, 0])))
    assert len(sides) > 5


def test_batches_of_photos_are_pictures_people_and_drawings():
    image = load_face_image(PORTRAIT, size=200)
    make = FaceBatches([image], ["a woman"], MeshFaceAnalyzer(), size=64, batch_size=3)
    batch = make(0, torch.Generator().manual_seed(0))
    assert batch.images.shape == batch.keypoints.shape == (3, 64, 64, 3)
    assert batch.captions == ("a woman",) * 3
    assert batch.identities.shape == (3, MeshFaceAnalyzer.width)
    again = make(0, torch.Generator().manual_seed(0))
    assert torch.equal(batch.images, again.images)
    assert not torch.equal(batch.keypoints[0], batch.keypoints[1])
    assert all(float(drawing.max()) > 0.5 for drawing in batch.keypoints)


@pytest.mark.wrong_shapes
def test_batches_that_do_not_belong_together_are_refused():
    images = torch.zeros(2, 8, 8, 3)
    with pytest.raises(ShapeError, match="2 images, 1 captions, 2 identities and 2 drawings"):
        InstantIDBatch(images, ("a",), torch.zeros(2, 4), images)
    with pytest.raises(ValueError, match=r"min_snr_gamma is 0.0 - expected above 0"):
        InstantIDTrainingConfig(min_snr_gamma=0.0)
