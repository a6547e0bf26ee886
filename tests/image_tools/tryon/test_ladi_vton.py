"""LaDI-VTON: the channels in their order, both halves of guidance, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.tryon.emasc import EmascPrior
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.ladi_vton import LadiVton, extra_channels, ladi_channels
from image_tools.tryon.ladi_warp import bending
from image_tools.tryon.pose_maps import heat_maps
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.sampling import sample_portraits
from renderers.errors import StudioError
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_ladi import SIZE, ladi_sample, tiny_ladi

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_pipelines) -> LadiVton:
    return tiny_ladi(load_folder(tiny_pipelines["sd2_v"], CPU))


@pytest.fixture(scope="module")
def sample() -> TryOnSample:
    return ladi_sample()


@pytest.fixture(scope="module")
def dressed(model, sample) -> torch.Tensor:
    return model.dress(sample, generators=generators(), config=DdimConfig(steps=2))


def generators(seeds: tuple[int, ...] = (1, 2)) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_channels_are_mask_person_pose_and_garment(model, sample) -> None:
    denoiser = model.denoiser
    seen = ladi_channels(denoiser, sample).channels
    assert seen.shape == (2, 27, 16, 12)
    assert denoiser.unet.config.in_channels == 31
    assert torch.equal(seen[:, :1], sample.mask[:, ::2, ::2].movedim(-1, 1))
    assert torch.equal(seen[:, 1:5], denoiser.encode_images(sample.agnostic))
    pose = F.interpolate(heat_maps(sample.keypoints, SIZE), (16, 12), mode="bilinear")
    assert torch.equal(seen[:, 5:23], pose)
    assert torch.equal(seen[:, 23:], denoiser.encode_images(sample.warped))


def test_rows_lose_pose_and_garment_apart(model, sample) -> None:
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    whole = ladi_channels(model.denoiser, sample).channels
    seen = ladi_channels(model.denoiser, sample, no_warp=first, no_pose=second).channels
    wanted = whole.clone()
    wanted[0, 23:], wanted[1, 5:23] = 0.0, 0.0
    assert torch.equal(seen, wanted)


def test_the_unconditional_half_keeps_mask_and_person_alone(model, sample) -> None:
    cond, uncond = model.conditions(sample)
    shown, hidden = (c.additions[0].channels for c in (cond, uncond))
    assert torch.equal(hidden[:, :5], shown[:, :5])
    assert float(hidden[:, 5:].abs().max()) == 0.0
    nothing = model.denoiser.encode_negative([""]).tokens
    assert torch.equal(uncond.text.tokens, nothing.expand(2, -1, -1))
    assert not torch.equal(cond.text.tokens, uncond.text.tokens)


def test_people_outside_the_mask_are_their_own_bit_for_bit(dressed, sample) -> None:
    keeps = (sample.mask == 0.0).expand_as(dressed)
    assert torch.equal(dressed[keeps], sample.person[keeps])
    assert not torch.equal(dressed, sample.person)


def test_dressing_is_sampling_and_decoding_with_connections(model, sample, dressed) -> None:
    cond, uncond = model.conditions(sample)
    prior = EmascPrior(model.denoiser, model.parts.skips)
    config = DdimConfig(steps=2)
    with prior.showing(sample.agnostic, sample.mask):
        images = sample_portraits(prior, cond, uncond, generators=generators(), config=config)
    assert torch.equal(sample.paste_back(images), dressed)
    plain = sample_portraits(model.denoiser, cond, uncond, generators=generators(), config=config)
    assert not torch.equal(images, plain)


def test_rows_do_not_depend_on_their_neighbours(model, sample, dressed) -> None:
    alone = model.dress(
        sample.select(torch.tensor([1])), generators=generators((2,)), config=DdimConfig(steps=2)
    )
    assert torch.allclose(alone[0], dressed[1], atol=1e-5)


def test_the_garment_is_bent_where_nobody_did_it(model) -> None:
    plain = replace(tiny_sample(size=SIZE), warped=None)
    bent = model.bent(plain)
    assert torch.equal(bent.warped, model.parts.bend(plain))
    assert model.bent(bent) is bent


def test_batches_are_bent_for_the_denoisers_trainer(model) -> None:
    plain, known = replace(tiny_sample(size=SIZE), warped=None), ladi_sample()
    for given in (plain, known):
        batches = bending(model.parts.bend, lambda number, generator, one=given: one)
        found = batches(0, torch.Generator())
        assert torch.equal(found.warped, model.bent(given).warped)
        assert replace(found, warped=None) == replace(given, warped=None)


def test_a_widened_denoiser_predicts_as_before(tiny_pipelines, sample) -> None:
    prior = load_folder(tiny_pipelines["sd2_v"], CPU)
    unet = widen_conv_in(prior.unet, 4 + extra_channels(4))
    denoiser = TryOnDenoiser(prior, unet, extra_channels=extra_channels(4), image_hw=SIZE)
    latents = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    t, text = torch.tensor([700, 20]), prior.encode_prompt(["a", "b"])
    shown = ladi_channels(denoiser, sample)
    found = denoiser.predict_output(latents, t, Condition(text, additions=(shown,)))
    assert torch.allclose(found, prior.predict_output(latents, t, text), atol=1e-6)


@torch.no_grad()
def test_product_pictures_of_any_size_are_seen_whole(model) -> None:
    plain = replace(tiny_sample(size=SIZE), warped=None)
    shirt = plain.garments[0]
    wide = replace(shirt, images=torch.rand(2, 9, 40, 3, generator=generators()[0]))
    found, wanted = (
        model.conditions(replace(plain, garments=(one,)))[0] for one in (wide, wide.sized(SIZE))
    )
    assert torch.equal(found.text.tokens, wanted.text.tokens)
    assert torch.equal(found.additions[0].channels, wanted.additions[0].channels)


def test_masks_are_seen_hard(model, sample) -> None:
    soft = replace(sample, mask=sample.mask * 0.75)
    channels = [ladi_channels(model.denoiser, one).channels for one in (soft, sample)]
    assert torch.equal(*channels)


def test_several_garments_are_refused(model, sample) -> None:
    many = replace(sample, garments=sample.garments * 2)
    with pytest.raises(StudioError, match="LaDI-VTON got 2 garments for each person"):
        model.conditions(many)
    with pytest.raises(StudioError, match="LaDI-VTON got 2 garments for each person"):
        model.bent(replace(many, warped=None))


def test_a_sample_without_keypoints_is_refused(model, sample) -> None:
    with pytest.raises(StudioError, match="LaDI-VTON needs the people's keypoints"):
        model.conditions(replace(sample, keypoints=None))
