"""Additions for some rows of a call: their rows as alone, the others as without them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.attention import AttentionOperation
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.loading import load_folder
from image_tools.editing.instruct_pix2pix import ImageAddition
from image_tools.errors import UnsupportedModel
from image_tools.personalization.partial_addition import PartialAddition

CHOSEN, ROWS = torch.tensor([2, 0]), 3
PROMPTS = ["a duck", "a mushroom", "a red duck"]


class Push(AttentionOperation):
    """Adds a share of each row's queries to what it attended to."""

    def __init__(self, shares: Tensor) -> None:
        self.shares = shares

    def applies_to(self, call):
        return call.layer.is_cross

    def needs_heads(self, call):
        return True

    def added(self, call, attn, query):
        return self.shares[:, None, None] * query.transpose(1, 2).flatten(2)


class Turn(Push):
    """More than adding."""

    def output(self, call, output):
        return -output


@dataclass(frozen=True)
class PushAddition:
    """Residuals for the middle, and an operation, both by a number for each row."""

    shares: Tensor
    operation: type = Push

    def __len__(self):
        return len(self.shares)

    def expand(self, rows):
        return self

    def stack(self, others):
        return replace(self, shares=torch.cat([self.shares, *(one.shares for one in others)]))

    def apply(self, call):
        height, width = call.latents.shape[-2:]
        mid = self.shares.reshape(-1, 1, 1, 1).expand(-1, 32, height // 2, width // 2)
        return replace(call, mid=mid).with_operations(self.operation(self.shares))


@dataclass(frozen=True)
class LouderText(PushAddition):
    """Changes what is there."""

    def apply(self, call):
        return replace(call, tokens=2.0 * call.tokens)


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["sd1"], torch.device("cpu"))


def noisy():
    return torch.randn(ROWS, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def predicted(prior, *additions, rows=slice(None)):
    text = prior.encode_prompt(PROMPTS).select(torch.arange(ROWS)[rows])
    t = torch.tensor([501, 21, 301])[rows]
    return prior.predict_output(noisy()[rows], t, Condition(text, additions=additions))


def test_chosen_rows_are_as_alone_and_others_as_without(prior):
    inner = PushAddition(torch.tensor([0.3, 1.0]))
    found = predicted(prior, PartialAddition(inner, CHOSEN, ROWS))
    alone, without = predicted(prior, inner, rows=CHOSEN), predicted(prior)
    torch.testing.assert_close(found[CHOSEN], alone, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(found[1], without[1], atol=1e-5, rtol=0.0)
    assert (alone - without[CHOSEN]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_halves_of_guidance_are_stacked(prior):
    shares = torch.tensor([[0.3, 1.0], [0.6, 0.1]])
    text = prior.encode_prompt(PROMPTS)
    cond, uncond = (
        Condition(text, additions=(PartialAddition(PushAddition(each), CHOSEN, ROWS),))
        for each in shares
    )
    t = torch.tensor([501, 21, 301])
    with torch.no_grad():
        found = prior.guided_noise(noisy(), t, cond, uncond, 2.0)
        each = [prior.predict_noise(noisy(), t, half) for half in (cond, uncond)]
    wanted = each[1] + 2.0 * (each[0] - each[1])
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0.0)


def test_two_of_them_add_up(prior):
    first, second = (PushAddition(torch.tensor([share, share])) for share in (0.3, 0.5))
    both = predicted(
        prior, PartialAddition(first, CHOSEN, ROWS), PartialAddition(second, CHOSEN, ROWS)
    )
    once = predicted(prior, PartialAddition(PushAddition(torch.full((2,), 0.8)), CHOSEN, ROWS))
    torch.testing.assert_close(both, once, atol=1e-5, rtol=0.0)


def test_channels_of_other_rows_are_zero():
    latents = torch.ones(2, 4, 8, 8)
    call = DenoiserCall(noisy(), torch.zeros(ROWS), torch.zeros(ROWS, 1, 1))
    told = PartialAddition(ImageAddition(latents), CHOSEN, ROWS).apply(call)
    assert told.sample.shape == (ROWS, 8, 8, 8)
    assert torch.equal(told.channels[0].mean(dim=(1, 2, 3)), torch.tensor([1.0, 0.0, 1.0]))
    assert told.mid is None


def test_what_does_more_than_add_is_refused(prior):
    shares = torch.tensor([0.3, 1.0])
    for inner, message in (
        (PushAddition(shares, Turn), "Turn changes the output of attention"),
        (LouderText(shares), "LouderText changes what some rows of a call are told"),
    ):
        with pytest.raises(UnsupportedModel, match=message):
            predicted(prior, PartialAddition(inner, CHOSEN, ROWS))
    with pytest.raises(ValueError, match="has 3 rows for 4 latents"):
        PartialAddition(PushAddition(shares), CHOSEN, ROWS).expand(4)
