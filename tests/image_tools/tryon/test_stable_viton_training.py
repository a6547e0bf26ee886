"""StableVITON's trainer: what learns, what stays, and that files read back as they were."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.stable_viton_configs import (
    PairAugmentation,
    StableVitonConfig,
    StableVitonTrainingConfig,
)
from image_tools.tryon.stable_viton_training import StableVitonLoss, train_stable_viton
from image_tools.tryon.stable_viton_weights import read_stable_viton
from renderers.errors import StudioError
from tests.image_tools.tryon.tiny_viton import SIZE, tiny_viton, viton_sample

CPU = torch.device("cpu")
STILL = PairAugmentation(mirrored=0.0, moved=0.0, recolored=0.0)
CONFIG = StableVitonTrainingConfig(
    TuningConfig(steps=20, learning_rate=3e-3, log_every=1), STILL, atv_blocks=(1,)
)


@pytest.fixture(scope="module")
def prior(tiny_pipelines) -> DiffusionPrior:
    return load_folder(tiny_pipelines["sd1"], CPU)


def same_batch(number: int, generator: torch.Generator) -> TryOnSample:
    return viton_sample()


def test_encoder_warps_and_head_learn_beside_a_frozen_denoiser(prior, tmp_path) -> None:
    model = tiny_viton(prior, trained=False)
    net, parts = model.denoiser.unet, model.parts
    frozen = copy.deepcopy({**net.unet.state_dict()})
    mapper = copy.deepcopy(parts.mapper.state_dict())
    result = train_stable_viton(
        model.denoiser, parts, same_batch, CONFIG, tmp_path, identity="people"
    )
    with (tmp_path / "log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(frozen[n], t) for n, t in net.unet.state_dict().items())
    assert all(torch.equal(mapper[n], t) for n, t in parts.mapper.state_dict().items())
    assert float(net.warps.zero_convs[0].weight.abs().sum()) > 0.0
    assert float(net.encoder.cond_first_block.weight.abs().sum()) > 0.0
    assert {path.name for path in result.files} == {"encoder", "warps", "head", "mapper"}

    net.unet.save_pretrained(tmp_path / "unet")
    model.parts.clip.model.save_pretrained(tmp_path / "clip")
    said = StableVitonConfig(str(tmp_path), str(tmp_path / "clip"))
    again = read_stable_viton(said, prior, image_hw=SIZE)
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(1, 17, 16, 12, generator=generator), torch.tensor([400])
    cond, _ = model.conditions(viton_sample(1))
    other, _ = again.conditions(viton_sample(1))
    assert torch.allclose(cond.text.tokens, other.text.tokens, atol=1e-5)
    with torch.no_grad():
        outputs = [
            m.denoiser.unet(x, t, encoder_hidden_states=cond.text.tokens).sample
            for m in (model, again)
        ]
    assert torch.allclose(*outputs, atol=1e-5)


def test_a_step_in_mixed_precision_is_nearly_that_of_full_precision(prior) -> None:
    model = tiny_viton(prior)
    loss = StableVitonLoss(
        model.denoiser, model.parts, same_batch, replace(CONFIG, atv_weight=1.0, dropout=0.5)
    )
    full = loss(0, torch.Generator().manual_seed(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss(0, torch.Generator().manual_seed(3))
    mixed.backward()
    torch.testing.assert_close(mixed.float(), full, rtol=0.02, atol=0.0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parts.head.parameters())


def test_smooth_attention_is_a_term_of_its_own(prior) -> None:
    model = tiny_viton(prior)
    without = replace(CONFIG, atv_weight=0.0, dropout=0.0)
    strong = replace(CONFIG, atv_weight=1.0, dropout=0.0)

    def loss(config: StableVitonTrainingConfig) -> float:
        one = StableVitonLoss(model.denoiser, model.parts, same_batch, config)
        with torch.no_grad():
            return float(one(0, torch.Generator().manual_seed(3)))

    assert loss(strong) > loss(without) + 1e-4


def test_the_loss_on_attention_needs_the_worn_garment(prior) -> None:
    model = tiny_viton(prior)

    def batches(number: int, generator: torch.Generator) -> TryOnSample:
        return replace(viton_sample(), worn_mask=None)

    loss = StableVitonLoss(model.denoiser, model.parts, batches, CONFIG)
    with pytest.raises(StudioError, match="StableVITON's loss on attention needs"):
        loss(0, torch.Generator().manual_seed(0))
    plain = StableVitonLoss(model.denoiser, model.parts, batches, replace(CONFIG, atv_weight=0.0))
    assert torch.isfinite(plain(0, torch.Generator().manual_seed(0)))
