"""Attention total variation in closed form, and augmentation that keeps maps on pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.tryon.stable_viton_augment import moved_apart, turned, varied
from image_tools.tryon.stable_viton_configs import PairAugmentation
from image_tools.tryon.stable_viton_losses import (
    attention_variation,
    expected_places,
    watching,
)
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_viton import tiny_viton, viton_sample

SIZE = (4, 3)
EVERYWHERE = torch.ones(1, 8, 6, 1)


def test_the_identity_has_two_steps_of_one() -> None:
    places = expected_places(torch.eye(12)[None], SIZE)
    assert places[0, 2, 1].tolist() == [2.0, 1.0]
    assert float(attention_variation(places, EVERYWHERE)) == pytest.approx(2.0)


def test_uniform_attention_has_none() -> None:
    places = expected_places(torch.full((1, 12, 12), 1.0 / 12), SIZE)
    assert torch.allclose(places, torch.tensor([1.5, 1.0]).expand(1, *SIZE, 2))
    assert float(attention_variation(places, EVERYWHERE)) == pytest.approx(0.0, abs=1e-6)


def test_only_pairs_inside_the_garment_count() -> None:
    places = expected_places(torch.eye(12)[None], SIZE)
    places[0, :, 2] += 50.0  # a jump at the border of the mask
    mask = torch.zeros(1, *SIZE, 1)
    mask[:, :, :2] = 1.0
    assert float(attention_variation(places, mask)) == pytest.approx(2.0)
    assert float(attention_variation(places, EVERYWHERE)) > 20.0
    assert float(attention_variation(places, torch.zeros_like(mask))) == 0.0


def test_watched_attention_is_the_blocks_own(tiny_pipelines) -> None:
    model = tiny_viton(load_folder(tiny_pipelines["sd1"], torch.device("cpu")))
    net = model.denoiser.unet
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 17, 16, 12, generator=generator), torch.tensor([10, 900])
    with watching(net.warps, (1,)) as seen:
        net(x, t, encoder_hidden_states=torch.randn(2, 1, 16, generator=generator))
    (one,) = seen.values()
    p, attn = one.probabilities(), one.layer
    assert p.shape == (2, 192, 192)
    assert torch.allclose(p.sum(dim=-1), torch.ones(2, 192), atol=1e-5)
    heads = []
    for q, k in zip(
        attn.to_q(one.hidden).chunk(attn.heads, dim=-1),
        attn.to_k(one.context).chunk(attn.heads, dim=-1),
        strict=True,
    ):
        heads.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1))
    assert torch.allclose(p, torch.stack(heads).mean(0), atol=1e-6)
    net.warps.requires_grad_(True)
    worn = viton_sample().worn_mask
    attention_variation(one.places(), worn)
    with watching(net.warps, (1,)) as seen:
        net(x, t, encoder_hidden_states=torch.randn(2, 1, 16, generator=generator))
    attention_variation(seen[1].places(), worn).backward()
    assert float(attn.to_k.weight.grad.abs().sum()) > 0.0


def marked():
    """People whose picture, mask and worn garment are one bright box."""
    sample = tiny_sample(rows=2, size=(32, 24))
    box = torch.zeros(2, 32, 24, 1)
    box[:, 8:20, 4:12] = 1.0
    person = box.expand(-1, -1, -1, 3).clone()
    garment = replace(sample.garments[0], images=person.clone())
    return replace(
        sample,
        person=person,
        mask=box,
        worn_mask=box.clone(),
        densepose=person,
        garments=(garment,),
    )


def test_maps_move_with_the_person_and_apart_from_the_garment() -> None:
    person = torch.tensor([[[1.0, 0.0, 0.25], [0.0, 1.0, 0.0]]]).repeat(2, 1, 1)  # 3 pixels
    garment = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.25]]]).repeat(2, 1, 1)  # 4 pixels
    moved = moved_apart(marked(), person, garment)
    wanted = torch.zeros(2, 32, 24, 1)
    wanted[:, 8:20, 1:9] = 1.0
    for part in (moved.mask, moved.worn_mask, moved.densepose[..., :1]):
        assert torch.equal(part, wanted)
    assert torch.allclose(moved.person[..., :1], wanted, atol=1e-5)
    product = torch.zeros(2, 32, 24, 1)
    product[:, 4:16, 4:12] = 1.0
    assert torch.allclose(moved.garments[0].images[..., :1], product, atol=1e-5)


def test_mirroring_turns_person_garment_and_maps_together() -> None:
    sample = marked()
    other = turned(sample, torch.tensor([True, False]))
    for name in ("person", "mask", "worn_mask", "densepose"):
        assert torch.equal(getattr(other, name)[0], getattr(sample, name)[0].flip(1))
        assert torch.equal(getattr(other, name)[1], getattr(sample, name)[1])
    assert torch.equal(other.garments[0].images[0], sample.garments[0].images[0].flip(1))


def test_the_garments_mask_stays_on_the_picture_whatever_is_drawn() -> None:
    config = PairAugmentation(mirrored=0.5, moved=1.0, recolored=0.0)
    sample = varied(marked(), torch.Generator().manual_seed(4), config)
    apart = (sample.worn_mask - sample.person[..., :1]).abs()
    assert float(apart.mean()) < 0.03  # the rim alone
    assert torch.equal(sample.mask, sample.worn_mask)
    inside = sample.mask.expand_as(sample.person) == 1.0
    assert torch.equal(sample.agnostic[inside], torch.full_like(sample.agnostic[inside], 0.5))


def test_no_augmentation_changes_nothing() -> None:
    sample = marked()
    config = PairAugmentation(mirrored=0.0, moved=0.0, recolored=0.0)
    other = varied(sample, torch.Generator().manual_seed(0), config)
    assert torch.allclose(other.person, sample.person, atol=1e-6)
    assert torch.equal(other.worn_mask, sample.worn_mask)
