"""LoRAs extracted from fine-tuned models: optimal, complete where they can be, honest elsewhere."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.lora_apply import attach_lora
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.errors import UnsupportedModel
from image_tools.personalization.extraction import extract_deltas
from tests.image_tools.random_loras import random_lora, same_changes
from tests.image_tools.tiny_unets import call_unet, tiny_unet


def test_a_model_that_a_lora_was_fused_into_gives_it_back():
    base, tuned = tiny_unet(), tiny_unet()
    lora = random_lora({"unet": base})
    with torch.no_grad():
        for name, delta in lora.sections["unet"].items():
            tuned.get_submodule(name).weight += delta.weight()
    deltas, report = extract_deltas(base.state_dict(), tuned.state_dict(), rank=3)
    found = LoraFile({"unet": deltas})
    assert same_changes(lora, found, tolerance=1e-5)
    assert report.layers == len(lora.sections["unet"])
    assert report.kept == pytest.approx(1.0, abs=1e-6)
    assert (report.left_out, report.left_out_share) == ((), 0.0)
    modules = {"unet": base}
    attach_lora(modules, found, name="extracted")
    assert torch.allclose(call_unet(base), call_unet(tuned), atol=1e-4)


def test_every_layer_is_its_best_approximation_and_the_report_tells_the_rest(generator):
    base = {"a.weight": torch.zeros(8, 6), "b.weight": torch.zeros(4, 3, 3, 3)}
    tuned = {key: torch.randn(value.shape, generator=generator) for key, value in base.items()}
    deltas, report = extract_deltas(base, tuned, rank=2)
    kept = total = 0.0
    for key, weight in tuned.items():
        values = torch.linalg.svdvals(weight.flatten(1)).square()
        missed = (weight - deltas[key.removesuffix(".weight")].weight()).square().sum()
        assert torch.allclose(missed, values[2:].sum(), rtol=1e-4)
        kept, total = kept + float(values[:2].sum()), total + float(values.sum())
    assert report.kept == pytest.approx(kept / total, abs=1e-5)


def test_norms_biases_and_embeddings_are_named_as_left_out():
    base = {
        "layer.weight": torch.zeros(4, 4),
        "layer.bias": torch.zeros(4),
        "norm.weight": torch.ones(4),
        "embeddings.token_embedding.weight": torch.zeros(9, 4),
        "same.weight": torch.ones(4, 4),
    }
    tuned = {key: value + (key != "same.weight") for key, value in base.items()}
    deltas, report = extract_deltas(base, tuned, rank=1)
    assert set(deltas) == {"layer"}
    assert report.left_out == ("embeddings.token_embedding.weight", "layer.bias", "norm.weight")
    assert report.left_out_share == pytest.approx((36 + 4 + 4) / (36 + 4 + 4 + 16))


def test_models_of_different_designs_are_refused():
    base = {"a.weight": torch.zeros(4, 4)}
    with pytest.raises(UnsupportedModel, match=r"Only the tuned model has 'b\.weight'"):
        extract_deltas(base, {**base, "b.weight": torch.zeros(1, 1)}, rank=1)
    with pytest.raises(UnsupportedModel, match=r"\[4, 4\] in the base model and \[4, 5\]"):
        extract_deltas(base, {"a.weight": torch.zeros(4, 5)}, rank=1)
