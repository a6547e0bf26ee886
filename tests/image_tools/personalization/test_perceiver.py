"""The perceiver resampler against diffusers' own, by the names of the public checkpoints."""

from __future__ import annotations

import pytest
import torch

from image_tools.personalization.perceiver import (
    Perceiver,
    PerceiverResampler,
    PerceiverSettings,
    draw_weights,
)

SETTINGS = PerceiverSettings(image_width=24, width=32, text_width=16, depth=2, heads=2, tokens=5)


def drawn(kind, settings=SETTINGS, seed: int = 0):
    module = kind(settings)
    draw_weights(module, torch.Generator().manual_seed(seed))
    return module


def stock_names(tensors):
    """Our tensors by the names of diffusers' IPAdapterPlusImageProjection."""
    parts = {
        "0.norm1.": "ln0.",
        "0.norm2.": "ln1.",
        "0.to_q.": "attn.to_q.",
        "0.to_out.": "attn.to_out.0.",
        "1.0.": "ff.0.",
        "1.1.": "ff.1.net.0.proj.",
        "1.3.": "ff.1.net.2.",
    }
    result = {}
    for name, tensor in tensors.items():
        if not name.startswith("layers."):
            result[name] = tensor
            continue
        _, layer, rest = name.split(".", 2)
        if rest == "0.to_kv.weight":
            for part, half in zip("kv", tensor.chunk(2), strict=True):
                result[f"layers.{layer}.attn.to_{part}.weight"] = half
            continue
        mine = next(part for part in parts if rest.startswith(part))
        result[f"layers.{layer}.{rest.replace(mine, parts[mine], 1)}"] = tensor
    return result


def test_resampler_is_the_stock_one():
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    ours = drawn(PerceiverResampler)
    stock = IPAdapterPlusImageProjection(
        embed_dims=24, output_dims=16, hidden_dims=32, depth=2, dim_head=64, heads=2, num_queries=5
    )
    stock.load_state_dict(stock_names(ours.state_dict()), strict=True)
    x = torch.randn(3, 11, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), stock(x), atol=2e-6, rtol=1e-5)


def test_a_resampler_is_a_perceiver_with_latents_of_its_own():
    ours, plain = drawn(PerceiverResampler), Perceiver(SETTINGS)
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if k != "latents"})
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(ours(x), plain(ours.latents.expand(2, -1, -1), x))


def test_order_of_image_tokens_means_nothing():
    ours = drawn(PerceiverResampler)
    x = torch.randn(1, 9, 24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours(x), ours(x.flip(1)))


@pytest.mark.parametrize("seed", [0, 1])
def test_initial_weights_come_from_the_generator_alone(seed):
    torch.manual_seed(100 + seed)
    first, second = drawn(PerceiverResampler, seed=seed), drawn(PerceiverResampler, seed=seed)
    other = drawn(PerceiverResampler, seed=seed + 1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert (
            "norm" in name or ".1.0." in name or not torch.equal(tensor, other.state_dict()[name])
        )


def test_public_sizes_have_the_public_names():
    with torch.device("meta"):
        sdxl = PerceiverResampler(
            PerceiverSettings(image_width=1280, width=1280, text_width=2048, heads=20)
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in sdxl.state_dict().items()}
    assert shapes["latents"] == (1, 16, 1280)
    assert shapes["layers.3.0.to_kv.weight"] == (2560, 1280)
    assert shapes["layers.3.1.1.weight"] == (5120, 1280)
    assert shapes["layers.0.1.0.bias"] == (1280,)
    assert shapes["proj_out.weight"] == (2048, 1280)
    assert "layers.0.0.to_q.bias" not in shapes
    assert len(shapes) == 7 + 4 * 11
