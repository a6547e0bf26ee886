"""Leffa's loss: attention that finds the right place costs less, and learns to."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.attention import AttentionHub
from image_tools.errors import UnsupportedModel
from image_tools.tryon.leffa import ReferenceMatches, flow_loss, flow_of, token_places
from image_tools.tryon.refbank import BankReader, record_bank
from tests.image_tools.tiny_unets import call_unet, inputs, tiny_unet

SIZE, TOKENS = (32, 32), (8, 8)
ROWS = 2


def smooth(seed: int) -> torch.Tensor:
    """A picture that survives being looked at through few tokens."""
    low = torch.rand(ROWS, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(low, SIZE, mode="bicubic").clamp(0, 1).movedim(1, -1)


def loss_of(attention: torch.Tensor, person: torch.Tensor, garment: torch.Tensor, **rows) -> float:
    """The loss of one layer's attention."""
    matches = ReferenceMatches()
    matches.maps["layer"] = (attention, TOKENS)
    counts = rows.get("counts", torch.ones(ROWS, dtype=torch.bool))
    worn = torch.zeros(ROWS, *SIZE, 1)
    worn[:, 6:-6, 6:-6] = 1.0
    return float(flow_loss(matches, person, garment, worn, counts))


def test_attention_to_the_same_place_is_the_identity():
    same = torch.eye(64).expand(ROWS, -1, -1)
    flow = flow_of(same, TOKENS, SIZE)
    expected = token_places(SIZE, flow).unflatten(0, SIZE)
    assert torch.allclose(flow[0, 4:-4, 4:-4], expected[4:-4, 4:-4], atol=1e-5)
    garment = smooth(1)
    assert loss_of(same, garment, garment) < 1e-8


def test_the_right_place_costs_less_than_anywhere_or_elsewhere():
    garment = smooth(1)
    person = garment.flip(2)
    turned = torch.eye(64).reshape(64, 8, 8).flip(2).reshape(64, 64).expand(ROWS, -1, -1)
    anywhere = torch.full((ROWS, 64, 64), 1.0 / 64.0)
    same = torch.eye(64).expand(ROWS, -1, -1)
    right = loss_of(turned, person, garment)
    assert right < 1e-8
    assert right < loss_of(anywhere, person, garment)
    assert right < loss_of(same, person, garment)


def test_rows_with_much_noise_do_not_count():
    garment, anywhere = smooth(1), torch.full((ROWS, 64, 64), 1.0 / 64.0)
    person = garment.clone()
    person[1] = garment[1].flip(1)
    first = loss_of(anywhere, person, garment, counts=torch.tensor([True, False]))
    alone = loss_of(anywhere, torch.stack([person[0]] * 2), torch.stack([garment[0]] * 2))
    assert first == pytest.approx(alone)
    assert loss_of(anywhere, person, garment, counts=torch.tensor([False, False])) == 0.0


def test_watching_changes_no_prediction_and_gradients_reach_queries_and_keys():
    unet = tiny_unet()
    latents, t, text = inputs(ROWS)
    bank = record_bank(unet, latents.flip(3), t, text)
    with AttentionHub(unet, [BankReader(bank)]):
        plain = call_unet(unet, ROWS)
    matches = ReferenceMatches(least_rows=8)
    with AttentionHub(unet, [matches, BankReader(bank)]):
        assert torch.allclose(call_unet(unet, ROWS), plain, atol=1e-5)
        unet(latents, t, encoder_hidden_states=text)
    names = {name for name, _ in unet.named_modules() if name.endswith(".attn1")}
    assert set(matches.maps) == {name for name in names if not name.startswith("mid")}
    for attention, size in matches.maps.values():
        assert size == TOKENS
        assert torch.allclose(attention.sum(dim=-1), torch.ones(ROWS, 64), atol=1e-5)
    garment = smooth(1)
    counts = torch.ones(ROWS, dtype=torch.bool)
    flow_loss(matches, garment.flip(2), garment, torch.ones(ROWS, *SIZE, 1), counts).backward()
    attn = unet.get_submodule(next(iter(matches.maps)))
    assert attn.to_q.weight.grad.abs().sum() > 0
    assert attn.to_k.weight.grad.abs().sum() > 0


def test_without_a_reference_of_the_same_size_it_is_refused():
    unet = tiny_unet()
    with (
        AttentionHub(unet, [ReferenceMatches()]),
        pytest.raises(UnsupportedModel, match="0 tokens of references beside 64"),
    ):
        call_unet(unet, ROWS)
