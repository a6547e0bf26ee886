"""Reference banks: equal to attention in loops, indifferent to order, and composable."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from image_tools.diffusion.attention import AttentionHub, BatchLayout
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.multiview import CrossViewAttention
from image_tools.errors import UnsupportedModel
from image_tools.tryon.refbank import (
    BankAddition,
    BankReader,
    ReferenceBank,
    SilentCrossAttention,
    check_bank_fits,
    record_bank,
)
from renderers.errors import ShapeError
from tests.image_tools.tiny_unets import call_unet, inputs, tiny_multiview_unet, tiny_unet

ROWS = 2


@pytest.fixture(scope="module")
def unet():
    """The denoiser that draws."""
    return tiny_unet()


@pytest.fixture(scope="module")
def reference_unet(unet):
    """Another denoiser of the family."""
    other = copy.deepcopy(unet)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return other


@pytest.fixture(scope="module")
def bank(reference_unet) -> ReferenceBank:
    """Features of two references."""
    latents, t, text = inputs(ROWS)
    with torch.no_grad():
        return record_bank(reference_unet, latents.flip(3), t, text)


def read(unet, bank: ReferenceBank | None, rows: int = ROWS) -> torch.Tensor:
    """The denoiser's output with a bank."""
    with AttentionHub(unet, [BankReader(bank)]):
        return call_unet(unet, rows)


def self_attention(unet) -> dict[str, nn.Module]:
    """Self-attention layers by name."""
    return {name: m for name, m in unet.named_modules() if name.endswith(".attn1")}


def attend_in_loops(attn: nn.Module, own: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention of one row, head by head and token by token."""
    query, key, value = attn.to_q(own), attn.to_k(keys), attn.to_v(keys)
    width = query.shape[1] // attn.heads
    output = torch.zeros_like(query)
    for head in range(attn.heads):
        part = slice(head * width, (head + 1) * width)
        for token in range(len(own)):
            logits = (key[:, part] * query[token, part]).sum(dim=1) / width**0.5
            weights = logits.exp() / logits.exp().sum()
            output[token, part] = (weights[:, None] * value[:, part]).sum(dim=0)
    return attn.to_out[0](output)


@torch.no_grad()
def loop_reference(unet, reference_unet) -> torch.Tensor:
    """What the two denoisers make together, without hub and processors."""
    latents, t, text = inputs(ROWS)
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0]), with_kwargs=False
        )
        for name, module in self_attention(reference_unet).items()
    ]
    reference_unet(latents.flip(3), t, encoder_hidden_states=text)
    for hook in hooks:
        hook.remove()
    drawing = copy.deepcopy(unet)
    for name, attn in self_attention(drawing).items():

        def forward(hidden, *_, attn=attn, name=name, **__):
            pairs = zip(hidden, seen[name], strict=True)
            rows = [attend_in_loops(attn, own, torch.cat([own, other])) for own, other in pairs]
            return torch.stack(rows)

        attn.forward = forward
    return call_unet(drawing, ROWS)


def test_a_bank_equals_attention_written_out_in_loops(unet, reference_unet, bank):
    expected = loop_reference(unet, reference_unet)
    assert (read(unet, bank) - expected).abs().max() < 2e-5
    assert (read(unet, None) - expected).abs().max() > 1e-2


def test_recording_ends_at_the_last_self_attention_with_all_of_them(reference_unet, bank):
    assert set(bank.features) == set(self_attention(reference_unet))
    ran = []
    hook = reference_unet.conv_out.register_forward_hook(lambda *_: ran.append(True))
    latents, t, text = inputs(ROWS)
    with torch.no_grad():
        record_bank(reference_unet, latents, t, text)
    hook.remove()
    assert not ran


def test_without_a_bank_the_prediction_is_the_same_bit_for_bit(unet):
    assert torch.equal(read(unet, None), call_unet(unet, ROWS))


def test_a_bank_of_zeros_is_not_no_bank(unet, bank):
    assert (read(unet, bank.zeros()) - call_unet(unet, ROWS)).abs().max() > 1e-3


def test_the_order_of_reference_tokens_means_nothing(unet, bank):
    shuffled = {}
    for name, values in bank.features.items():
        order = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(1))
        shuffled[name] = values[:, order]
    assert torch.allclose(read(unet, ReferenceBank(shuffled)), read(unet, bank), atol=1e-5)


def test_the_order_of_references_means_nothing(unet, bank):
    other = bank.select(torch.tensor([1, 0]))
    both, turned = bank.beside([other]), other.beside([bank])
    assert torch.allclose(read(unet, both), read(unet, turned), atol=1e-5)
    assert not torch.allclose(read(unet, both), read(unet, bank), atol=1e-3)


def test_grouped_rows_are_references_side_by_side(unet, bank):
    grouped = bank.grouped(2)
    assert len(grouped) == 1
    name = next(iter(bank.features))
    assert torch.equal(grouped.features[name][0], bank.features[name].flatten(0, 1))
    with pytest.raises(ShapeError, match="not whole groups of 3"):
        bank.grouped(3)


def test_rows_are_independent_and_a_single_row_serves_all(unet, bank):
    both = read(unet, bank)
    one = bank.select(torch.tensor([0]))
    assert torch.allclose(read(unet, one, rows=1), both[:1], atol=1e-5)
    with pytest.raises(ShapeError, match="a reference for each row"):
        read(unet, one)
    assert torch.allclose(read(unet, one.repeated(ROWS))[:1], both[:1], atol=1e-5)
    with pytest.raises(ShapeError, match="2 images for 3 rows"):
        bank.repeated(3)


def test_gradients_reach_the_reference_denoiser_and_the_drawing_one(unet, reference_unet):
    reading, writing = copy.deepcopy(unet).train(), copy.deepcopy(reference_unet).train()
    latents, t, text = inputs(1)
    recorded = record_bank(writing, latents, t, text)
    with AttentionHub(reading, [BankReader(recorded)]):
        reading(latents, t, encoder_hidden_states=text).sample.square().mean().backward()
    for model in (reading, writing):
        first = next(iter(self_attention(model).values()))
        assert model.conv_in.weight.grad.abs().sum() > 0
    assert first.to_q.weight.grad.abs().sum() > 0  # later layers are recorded behind it


def test_a_silent_text_changes_nothing_of_what_is_recorded(reference_unet):
    latents, t, text = inputs(ROWS)
    silent = [SilentCrossAttention()]
    one = record_bank(reference_unet, latents, t, text, operations=silent)
    other = record_bank(reference_unet, latents, t, text.flip(0) + 1.0, operations=silent)
    for name, values in one.features.items():
        assert torch.equal(values, other.features[name])


def test_views_of_a_set_see_its_bank_once(reference_unet):
    """Keys of a set are its views' tokens and one reference's, which may be given for each view."""
    unet = tiny_multiview_unet()
    latents, t, text = inputs(ROWS)
    bank = record_bank(reference_unet, latents[:1], t[:1], text[:1])
    drawn = []
    for rows in (bank, bank.repeated(ROWS)):
        operations = [CrossViewAttention(), BankReader(rows)]
        with AttentionHub(unet, operations) as hub, hub.batch(BatchLayout(views=ROWS)):
            drawn.append(call_unet(unet, ROWS, cameras=torch.zeros(ROWS, 16)))
    assert torch.equal(*drawn)
    with AttentionHub(unet, operations[:1]) as hub, hub.batch(BatchLayout(views=ROWS)):
        plain = call_unet(unet, ROWS, cameras=torch.zeros(ROWS, 16))
    assert (drawn[0] - plain).abs().max() > 1e-3


def test_a_bank_is_part_of_a_condition(tiny_pipelines, unet):
    """Guidance stacks banks of its halves as it stacks text."""
    prior = load_folder(tiny_pipelines["sd1"], torch.device("cpu"))
    latents, t, _ = inputs(ROWS)
    text = prior.encode_prompt(["a red shirt"])
    bank = record_bank(prior.unet, latents, t, text.expand(ROWS).tokens)
    cond = Condition(text).expand(ROWS)
    told = replace(cond, additions=(BankAddition(bank),))
    untold = replace(cond, additions=(BankAddition(bank.zeros()),))
    guided = prior.guided_noise(latents, t, told, untold, 3.0)
    apart = [prior.predict_noise(latents, t, one) for one in (untold, told)]
    assert torch.allclose(guided, apart[0] + 3.0 * (apart[1] - apart[0]), atol=1e-4)
    assert torch.equal(prior.predict_noise(latents, t, cond), prior.predict_noise(latents, t, text))


def test_another_design_is_refused(unet, tiny_pipelines):
    other = load_folder(tiny_pipelines["sdxl"], torch.device("cpu")).unet
    check_bank_fits(other, unet)  # the text's width does not matter
    other = copy.deepcopy(unet)
    other.mid_block = nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"width none in mid_block.*reads it 32"):
        check_bank_fits(other, unet)
