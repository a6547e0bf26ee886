"""Samples and wider denoisers: what is refused, what is kept, and that nothing changes at first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.errors import UnsupportedModel
from image_tools.tryon.extend import ExtraChannels, latent_mask, widen_conv_in
from renderers.errors import ShapeError, StudioError
from tests.image_tools.tiny_unets import call_unet, inputs, tiny_unet
from tests.image_tools.tryon.people import tiny_sample


def test_what_is_painted_anew_is_grey_and_the_rest_is_kept():
    sample = tiny_sample()
    inside = sample.mask.expand_as(sample.person) == 1.0
    assert torch.equal(sample.agnostic[~inside], sample.person[~inside])
    assert torch.allclose(sample.agnostic[inside], torch.tensor(0.5))
    painted = torch.rand_like(sample.person)
    pasted = sample.paste_back(painted)
    assert torch.equal(pasted[~inside], sample.person[~inside])
    assert torch.equal(pasted[inside], painted[inside])
    nothing = replace(sample, mask=torch.zeros_like(sample.mask))
    assert torch.equal(nothing.paste_back(painted), sample.person)


def test_soft_masks_are_hardened_from_a_half_on():
    sample = tiny_sample()
    soft = sample.mask.clone()
    soft[:, 0, :3, 0] = torch.tensor([0.49, 0.5, 0.9])
    hard = replace(sample, mask=soft).hardened
    assert hard.mask[0, 0, :3, 0].tolist() == [0.0, 1.0, 1.0]
    assert torch.equal(sample.hardened.mask, sample.mask)


def test_garments_are_brought_to_a_size_on_white_and_not_stretched():
    shirt = tiny_sample().garments[0]
    assert shirt.sized((32, 16)) is shirt
    wide = replace(shirt, images=torch.zeros(2, 8, 16, 3), masks=torch.ones(2, 8, 16, 1)).sized(
        (32, 16)
    )
    assert wide.images.shape == (2, 32, 16, 3)
    rows = torch.arange(32)
    is_shown = (rows >= 12) & (rows < 20)
    assert bool((wide.images[:, is_shown] == 0.0).all())
    assert bool((wide.images[:, ~is_shown] == 1.0).all())
    assert torch.equal(wide.masks[0, :, 0, 0], is_shown.float())


def test_rows_are_selected_with_their_words():
    sample = tiny_sample(rows=3)
    shirts = replace(sample.garments[0], captions=("a", "b", "c"))
    sample = replace(sample, garments=(shirts,), captions=("x", "y", "z"))
    chosen = sample.select(torch.tensor([2, 0]))
    assert chosen.captions == ("z", "x")
    assert chosen.garments[0].captions == ("c", "a")
    assert torch.equal(chosen.person, sample.person[[2, 0]])
    assert torch.equal(chosen.garments[0].images, shirts.images[[2, 0]])


def test_parts_that_do_not_belong_together_are_refused():
    sample = tiny_sample()
    with pytest.raises(ShapeError, match="mask has shape"):
        replace(sample, mask=sample.mask[:, :4])
    with pytest.raises(ShapeError, match="keypoints has shape"):
        replace(sample, keypoints=sample.keypoints[:, :5])
    with pytest.raises(ShapeError, match="2 people came with no garment"):
        replace(sample, garments=())
    with pytest.raises(ShapeError, match="2 garments came with 1 captions"):
        replace(sample.garments[0], captions=("one",))
    with pytest.raises(StudioError, match="LaDI-VTON needs the people's warped"):
        sample.need("warped", model="LaDI-VTON")


def test_a_wider_denoiser_ignores_its_new_channels_until_it_is_trained():
    unet = tiny_unet()
    wide, (latents, t, text) = widen_conv_in(unet, 13), inputs(2)
    more = torch.randn(2, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = wide(torch.cat([latents, more], dim=1), t, encoder_hidden_states=text).sample
    assert torch.allclose(output, call_unet(unet, 2), atol=1e-5)
    assert torch.equal(wide.conv_in.bias, unet.conv_in.bias)
    with pytest.raises(UnsupportedModel, match="takes 13 channels already - expected at most 9"):
        widen_conv_in(wide, 9)


def test_channels_have_the_latents_rows_and_size():
    channels = ExtraChannels(torch.zeros(1, 9, 8, 6))
    assert len(channels.expand(3)) == 3
    with pytest.raises(ShapeError, match="2 rows for 3 latents"):
        channels.expand(2).expand(3)


def test_masks_are_made_small_by_the_nearest_pixel():
    mask = torch.zeros(1, 8, 8, 1)
    mask[:, :4] = 1.0
    assert latent_mask(mask, 4)[0, 0].tolist() == [[1.0, 1.0], [0.0, 0.0]]
