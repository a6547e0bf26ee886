"""LaDI-VTON's trainers: losses fall, files read back as they were, and killed trainings go on."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.loop import LoopHooks
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.tryon.emasc import EmascPrior, SkipConnections, skip_settings
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.ladi_configs import (
    AdapterTrainingConfig,
    EmascSettings,
    EmascTrainingConfig,
    LadiTrainingConfig,
    WarpSettings,
    WarpTrainingConfig,
)
from image_tools.tryon.ladi_training import train_adapter, train_ladi, train_skips
from image_tools.tryon.ladi_warp_training import train_refinement, train_spline
from image_tools.tryon.ladi_weights import read_adapter, read_skips, read_warping
from image_tools.tryon.own_modules import read_own
from image_tools.tryon.perceptual import FeatureDistance, Vgg19
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.warp_tps import WarpNet, warp
from image_tools.vision.clip_images import ClipImages
from renderers.errors import StudioError
from tests.image_tools.tryon.tiny_ladi import (
    SIZE,
    WARP,
    ladi_sample,
    tiny_adapter,
    tiny_bend,
    tiny_ladi,
)
from tests.image_tools.vision.tiny_clip import tiny_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prior(tiny_pipelines) -> DiffusionPrior:
    return load_folder(tiny_pipelines["sd1"], CPU)


def same_batch(number: int, generator: torch.Generator) -> TryOnSample:
    """Always the same people; what is drawn of noise is not."""
    return ladi_sample()


def shifted(number: int, generator: torch.Generator) -> TryOnSample:
    """Smooth garments that are worn a few pixels away from where the product shows them."""
    sample = ladi_sample()
    y, x = (torch.linspace(-1.0, 1.0, side) for side in SIZE)
    blob = torch.exp(-4.0 * (y[:, None].square() + x[None].square()))[None, ..., None]
    product = blob.expand(2, -1, -1, 3).clone()
    person = product.roll(4, dims=1)
    garment = replace(sample.garments[0], images=product)
    whole = torch.ones_like(sample.mask)
    return replace(sample, person=person, garments=(garment,), worn_mask=whole)


def losses(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def loop(steps: int = 20, rate: float = 1e-3, **settings) -> TuningConfig:
    return TuningConfig(steps=steps, learning_rate=rate, log_every=1, **settings)


def test_the_spline_learns_a_shift_and_reads_back(tmp_path) -> None:
    torch.manual_seed(0)
    tps = WarpNet(WARP)
    config = WarpTrainingConfig(loop(rate=3e-3, betas=(0.5, 0.99), weight_decay=0.0))
    result = train_spline(tps, shifted, config, tmp_path, identity="blobs")
    found = losses(tmp_path)
    assert result.finished
    assert sum(found[-3:]) < 0.8 * sum(found[:3])
    again = read_own(WarpNet, WarpSettings, result.files[-1])
    inputs = torch.rand(1, 3, *SIZE), torch.rand(1, WARP.person_channels, *SIZE)
    assert torch.equal(again(*inputs), tps(*inputs))
    assert all(not p.requires_grad for p in tps.parameters())


def test_a_killed_spline_goes_on_bit_for_bit_with_its_statistics(tmp_path) -> None:
    torch.manual_seed(0)
    start = WarpNet(WARP)
    config = WarpTrainingConfig(loop(6, save_every=1))
    whole, killed = copy.deepcopy(start), copy.deepcopy(start)
    train_spline(whole, shifted, config, tmp_path / "whole", identity="x")
    stop = LoopHooks(should_stop=lambda: True)
    assert not train_spline(
        killed, shifted, config, tmp_path / "killed", identity="x", hooks=stop
    ).finished
    fresh = copy.deepcopy(start)
    train_spline(fresh, shifted, config, tmp_path / "killed", identity="x")
    for name, tensor in whole.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(fresh.state_dict()[name], tensor), name


def test_the_refinement_learns_behind_a_frozen_spline(tmp_path) -> None:
    bend = tiny_bend()
    before = copy.deepcopy(bend.tps.state_dict())
    config = WarpTrainingConfig(loop(rate=1e-2))
    torch.manual_seed(0)
    distance = FeatureDistance(Vgg19(width=4).eval().requires_grad_(False), side=32)
    result = train_refinement(
        bend, shifted, config, tmp_path, identity="blobs", perceptual=distance
    )
    found = losses(tmp_path)
    assert sum(found[-3:]) < 0.8 * sum(found[:3])
    assert all(torch.equal(before[n], t) for n, t in bend.tps.state_dict().items())
    bend.tps.save_pretrained(tmp_path / "tps")
    assert result.files[-1] == tmp_path / "refinement"
    again = read_warping(tmp_path, CPU)
    assert torch.equal(again(ladi_sample()), bend(ladi_sample()))


def test_skip_connections_learn_and_read_back(prior, tmp_path) -> None:
    denoiser = TryOnDenoiser(prior, prior.unet, extra_channels=0, image_hw=SIZE)
    torch.manual_seed(0)
    skips = SkipConnections(skip_settings(prior.vae))
    config = EmascTrainingConfig(loop(rate=1e-2))
    result = train_skips(
        EmascPrior(denoiser, skips), same_batch, config, tmp_path, identity="people"
    )
    found = losses(tmp_path)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    again = read_skips(result.files[-1], EmascSettings())
    assert all(torch.equal(again.state_dict()[n], t) for n, t in skips.state_dict().items())
    assert all(not p.requires_grad for p in prior.vae.parameters())


def test_results_of_earlier_calls_are_results_as_well(prior, tmp_path) -> None:
    denoiser = TryOnDenoiser(prior, prior.unet, extra_channels=0, image_hw=SIZE)
    skips = EmascPrior(denoiser, SkipConnections(skip_settings(prior.vae)))
    config = EmascTrainingConfig(loop(4, checkpoint_steps=(1, 3)))
    stop = LoopHooks(should_stop=lambda: True)
    part = train_skips(skips, same_batch, config, tmp_path, identity="x", hooks=stop)
    assert part.files == (tmp_path / "step-000001" / "emasc",)
    whole = train_skips(skips, same_batch, config, tmp_path, identity="x")
    wanted = ["step-000001/emasc", "step-000003/emasc", "emasc"]
    assert [str(path.relative_to(tmp_path)) for path in whole.files] == wanted
    assert all(path.is_dir() for path in whole.files)


def test_the_adapter_learns_beside_a_frozen_inpainter(prior, tmp_path) -> None:
    clip = ClipImages(tiny_clip())
    inpainter = TryOnDenoiser(prior, widen_conv_in(prior.unet, 9), extra_channels=5, image_hw=SIZE)
    before = copy.deepcopy(inpainter.unet.state_dict())
    adapter = tiny_adapter(clip, prior.unet.config.cross_attention_dim)
    start = copy.deepcopy(adapter.state_dict())
    config = AdapterTrainingConfig(loop(4))
    result = train_adapter(
        inpainter, clip, adapter, same_batch, config, tmp_path, identity="people"
    )
    assert all(torch.equal(before[n], t) for n, t in inpainter.unet.state_dict().items())
    assert all(
        not torch.equal(start[n], t) for n, t in adapter.state_dict().items() if "layers" in n
    )
    again = read_adapter(result.files[-1], adapter.settings)
    tokens = torch.rand(1, 17, clip.width)
    assert torch.equal(again(tokens), adapter(tokens))
    assert not adapter.training


def test_denoiser_and_adapter_learn_together(prior, tmp_path) -> None:
    model = tiny_ladi(prior)
    config = LadiTrainingConfig(loop(), dropout=0.2)
    result = train_ladi(
        model.denoiser,
        model.parts.clip,
        model.parts.adapter,
        same_batch,
        config,
        tmp_path,
        identity="people",
    )
    found = losses(tmp_path)
    assert sum(found[-5:]) < sum(found[:5])
    assert [path.name for path in result.files] == ["unet", "adapter"]
    again = type(model.denoiser.unet).from_pretrained(tmp_path / "unet")
    assert all(
        torch.equal(again.state_dict()[n], t) for n, t in model.denoiser.unet.state_dict().items()
    )


def test_training_needs_the_worn_garment(tmp_path) -> None:
    def batches(number: int, generator: torch.Generator) -> TryOnSample:
        return replace(ladi_sample(), worn_mask=None)

    with pytest.raises(StudioError, match="LaDI-VTON's training needs the people's worn_mask"):
        train_spline(WarpNet(WARP), batches, WarpTrainingConfig(loop(1)), tmp_path, identity="")


def test_a_bent_garment_passes_gradients_to_its_points() -> None:
    net = WarpNet(WARP)
    points = net(torch.rand(1, 3, *SIZE), torch.rand(1, WARP.person_channels, *SIZE))
    warp(torch.rand(1, 3, *SIZE), net.grid(points)).square().mean().backward()
    assert float(net.loc_net.regression.linear.weight.grad.abs().sum()) > 0.0
