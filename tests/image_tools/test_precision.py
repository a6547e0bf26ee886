"""What must not be rounded inside of mixed precision: VAEs, texts, coordinates."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.precision import full_precision
from image_tools.tryon.leffa import flow_of
from image_tools.tryon.stable_viton_losses import expected_places
from image_tools.tryon.warp_tps import SplineGrid, regular_points

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prior(tiny_pipelines):
    return load_folder(tiny_pipelines["pocket"], CPU)


def mixed():
    """Mixed precision as a trainer switches it on."""
    return torch.autocast("cpu", torch.bfloat16)


def test_mixed_precision_rounds_products_and_is_switched_off():
    a = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    with mixed():
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(CPU):
            assert (a @ a).dtype == torch.float32


def test_a_device_without_mixed_precision_is_left_alone():
    with full_precision(torch.device("meta")):
        assert torch.ones(1, device="meta").dtype == torch.float32


def test_latents_and_pictures_are_the_same_bits_inside_of_mixed_precision(prior):
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    mean, std = prior.encode_posterior(images)
    pictures = prior.decode_latents(mean)
    with mixed():
        inside = prior.encode_posterior(images)
        assert torch.equal(inside[0], mean)
        assert torch.equal(inside[1], std)
        assert torch.equal(prior.decode_latents(mean), pictures)


def test_texts_are_the_same_bits_inside_of_mixed_precision_and_so_is_what_is_kept(prior):
    before = prior.text.encode(["a man", ""]).tokens
    with mixed():
        assert torch.equal(prior.text.encode(["a man", ""]).tokens, before)
        prior.encode_prompt(["a woman"])
    assert torch.equal(
        prior.encode_prompt(["a woman"]).tokens, prior.text.encode(["a woman"]).tokens
    )


def test_garments_are_bent_alike_inside_of_mixed_precision():
    points = regular_points()[None] + 0.05 * torch.rand(1, 25, 2)
    spline = SplineGrid((64, 48))
    outside = spline(points)
    with mixed():
        assert torch.equal(spline(points), outside)
        rounded = spline(points.bfloat16())
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize("attention", [torch.float32, torch.bfloat16])
def test_places_that_attention_looks_at_are_not_rounded_further(attention):
    weights = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(2)).softmax(-1)
    weights = weights.to(attention)
    flow, places = (
        flow_of(weights.float(), (8, 8), (16, 16)),
        expected_places(weights.float(), (8, 8)),
    )
    with mixed():
        assert torch.equal(flow_of(weights, (8, 8), (16, 16)), flow)
        assert torch.equal(expected_places(weights, (8, 8)), places)
