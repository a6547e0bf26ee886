"""The grounding resampler: waves of boxes, what latents start from, and the whole by loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from image_tools.personalization.ms_diffusion_configs import MSShape
from image_tools.personalization.ms_diffusion_resampler import GroundingResampler, box_features

SHAPE = MSShape(
    image_width=12, phrase_width=10, text_width=14, dim=16, heads=2, depth=2, tokens=3, dummies=2
)
NO = torch.zeros(4, dtype=torch.bool)


@pytest.fixture(scope="module")
def resampler():
    module = GroundingResampler(SHAPE)
    module.draw(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms that would be the identity are not left out by mistake
        for name, parameter in module.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def given():
    """Features, phrases and boxes of four images."""
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(4, 7, 12, generator=generator),
        torch.randn(4, 10, generator=generator),
        torch.rand(4, 4, generator=generator),
    )


def test_boxes_become_waves_of_eight_frequencies():
    boxes = torch.rand(3, 4, generator=torch.Generator().manual_seed(3))
    found = box_features(boxes)
    for box, numbers in zip(boxes.tolist(), found.tolist(), strict=True):
        expected = [
            wave(100.0 ** (k / 8) * bound)
            for k in range(8)
            for wave in (math.sin, math.cos)
            for bound in box
        ]
        assert numbers == pytest.approx(expected, abs=2e-5)


def by_loops(module, x, phrase, box):
    """One image, head by head, with the tensors by name."""
    p = dict(module.named_parameters())

    def norm(value, name):
        return F.layer_norm(value, value.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(value, name):
        return value @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)

    ground = torch.cat([phrase, box_features(box[None])[0]])
    ground = linear(F.gelu(linear(ground, "latent_proj.0")), "latent_proj.2")
    latents = norm(ground.reshape(SHAPE.tokens, SHAPE.dim), "latent_norm")
    x = linear(x, "proj_in")
    for k in range(SHAPE.depth):
        own = norm(latents, f"layers.{k}.0.norm2")
        both = torch.cat([norm(x, f"layers.{k}.0.norm1"), own])
        query, pairs = (linear(v, f"layers.{k}.0.{n}") for v, n in ((own, "to_q"), (both, "to_kv")))
        key, value = pairs.split(64 * SHAPE.heads, dim=1)
        heads = []
        for h in range(SHAPE.heads):
            cut = slice(64 * h, 64 * (h + 1))
            weights = torch.softmax(query[:, cut] @ key[:, cut].T / 8.0, dim=1)
            heads.append(weights @ value[:, cut])
        latents = latents + linear(torch.cat(heads, dim=1), f"layers.{k}.0.to_out")
        hidden = linear(norm(latents, f"layers.{k}.1.0"), f"layers.{k}.1.1")
        latents = latents + linear(F.gelu(hidden), f"layers.{k}.1.3")
    return norm(linear(norm(latents, "attention_norm"), "proj_out"), "norm_out")


@torch.no_grad()
def test_tokens_are_those_of_the_definition_image_by_image(resampler, given):
    found = resampler(*given, NO)
    for row, parts in enumerate(zip(*given, strict=True)):
        torch.testing.assert_close(found[row], by_loops(resampler, *parts), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_learned_latents_know_neither_phrase_nor_box(resampler, given):
    features, phrases, boxes = given
    learned = torch.tensor([True, False, True, False])
    first = resampler(features, phrases, boxes, learned)
    second = resampler(features, phrases + 1.0, boxes.flip(1), learned)
    assert torch.equal(first[::2], second[::2])
    assert (first[1::2] - second[1::2]).abs().amax(dim=(1, 2)).min() > 1e-3
    assert torch.equal(first[1::2], resampler(*given, NO)[1::2])


def test_every_parameter_is_learned_where_some_rows_are_grounded(resampler, given):
    resampler.requires_grad_(True)
    resampler(*given, torch.tensor([True, False, False, False])).square().sum().backward()
    for name, parameter in resampler.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0.0, name
