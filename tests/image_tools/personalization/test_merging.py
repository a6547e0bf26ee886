"""Merged LoRAs: sums are exact, peft's rules keep their limits, ranks shrink optimally."""

from __future__ import annotations

import pytest
import torch

from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile
from image_tools.errors import UnsupportedModel
from image_tools.personalization.merging import COMBINATIONS, combine_loras, resize_lora, sum_loras
from renderers.errors import StudioError
from tests.image_tools.random_loras import random_delta, same_changes

CONV, LINEAR, OTHER = "conv_in", "mid_block.attentions.0.proj_in", "conv_out"
SHAPES = {CONV: (6, 4, 3, 3), LINEAR: (10, 8), OTHER: (4, 6, 3, 3)}


def lora(seed: int, *names: str, rank: int = 2, alpha: float = 3.0) -> LoraFile:
    """Random deltas for some layers."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        name: random_delta(torch.empty(SHAPES[name]), rank=rank, alpha=alpha, generator=generator)
        for name in names
    }
    return LoraFile({"unet": deltas})


def seeded() -> torch.Generator:
    """A fresh generator."""
    return torch.Generator().manual_seed(0)


def test_the_sum_is_exact_and_ranks_add_up():
    first, second = lora(1, CONV, LINEAR), lora(2, LINEAR, OTHER, rank=3, alpha=0.5)
    merged = sum_loras([(first, 0.7), (second, -2.0)]).sections["unet"]
    assert {name: delta.rank for name, delta in merged.items()} == {CONV: 2, LINEAR: 5, OTHER: 3}
    one, two = first.sections["unet"], second.sections["unet"]
    wanted = {
        CONV: 0.7 * one[CONV].weight(),
        LINEAR: 0.7 * one[LINEAR].weight() - 2.0 * two[LINEAR].weight(),
        OTHER: -2.0 * two[OTHER].weight(),
    }
    for name, weight in wanted.items():
        assert torch.allclose(merged[name].weight(), weight, atol=1e-6)


@pytest.mark.parametrize("method", COMBINATIONS)
def test_a_lora_alone_and_kept_whole_comes_back(method):
    """Density 1 drops nothing, and one LoRA has nobody to disagree with."""
    single = lora(1, CONV, LINEAR)
    found = combine_loras([(single, 1.0)], method=method, rank=2, generator=seeded(), density=1.0)
    assert same_changes(single, found, tolerance=1e-5)


def test_svd_of_enough_rank_is_the_sum_and_of_less_its_best_approximation():
    loras = [(lora(1, CONV, LINEAR), 1.0), (lora(2, CONV, LINEAR), 0.5)]
    exact = sum_loras(loras)
    full = combine_loras(loras, method="svd", rank=4, generator=seeded())
    assert same_changes(exact, full, tolerance=1e-5)
    cut = combine_loras(loras, method="svd", rank=2, generator=seeded())
    assert same_changes(resize_lora(exact, 2), cut, tolerance=1e-5)
    assert {delta.rank for _, _, delta in cut.deltas()} == {2}


def test_ties_ignores_the_minority_sign():
    """Entries on which the larger change decides are that change's alone."""
    strong = LoraFile({"unet": {LINEAR: LoraDelta(torch.ones(1, 8), 2.0 * torch.ones(10, 1), 1.0)}})
    weak = strong.scaled(-0.25)
    pair = [(strong, 1.0), (weak, 1.0)]
    merged = combine_loras(pair, method="ties", rank=1, generator=seeded(), density=1.0)
    assert same_changes(strong, merged, tolerance=1e-5)


def test_pruning_keeps_the_largest_entries():
    generator = seeded()
    weight = torch.randn(10, 8, generator=generator)
    delta = LoraDelta(torch.eye(8), weight, alpha=8.0)
    single = LoraFile({"unet": {LINEAR: delta}})
    found = combine_loras(
        [(single, 1.0)], method="magnitude_prune", rank=8, generator=generator, density=0.25
    )
    kept = weight.abs() >= weight.abs().flatten().topk(20).values[-1]
    assert torch.allclose(found.sections["unet"][LINEAR].weight(), weight * kept, atol=1e-5)


def test_dare_draws_from_its_generator_only():
    loras = [(lora(1, LINEAR), 1.0), (lora(2, LINEAR), 1.0)]
    before = torch.random.get_rng_state()
    runs = [
        combine_loras(
            loras, method="dare_linear", rank=8, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (3, 3, 4)
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_changes(runs[0], runs[1], tolerance=0.0)
    assert not same_changes(runs[0], runs[2])


def test_one_by_one_convolutions_merge_with_matrices():
    first = lora(1, LINEAR)
    delta = first.sections["unet"][LINEAR]
    square = LoraDelta(delta.down[:, :, None, None], delta.up[:, :, None, None], delta.alpha)
    merged = sum_loras([(first, 1.0), (LoraFile({"unet": {LINEAR: square}}), 1.0)])
    assert same_changes(first.scaled(2.0), merged)


def test_what_cannot_be_merged_is_refused():
    good = lora(1, LINEAR)
    delta = good.sections["unet"][LINEAR]
    wide = LoraFile({"unet": {LINEAR: LoraDelta(torch.ones(2, 9), delta.up, 1.0)}})
    with pytest.raises(UnsupportedModel, match=r"\[10, 8\] and \[10, 9\]"):
        sum_loras([(good, 1.0), (wide, 1.0)])
    dora = LoraFile({"unet": {LINEAR: LoraDelta(delta.down, delta.up, 1.0, torch.ones(10))}})
    with pytest.raises(UnsupportedModel, match="LoRA 2 of 2 is a DoRA"):
        sum_loras([(good, 1.0), (dora, 1.0)])
    with pytest.raises(StudioError, match="no LoRA to merge"):
        sum_loras([])
    with pytest.raises(StudioError, match=r"density is 0\.0"):
        combine_loras([(good, 1.0)], method="ties", rank=2, generator=seeded(), density=0.0)
    token = LoraFile(good.sections, embeddings={"<a>": {"*": torch.ones(1, 4)}})
    assert sum_loras([(token, 1.0), (good, 1.0)]).embeddings.keys() == {"<a>"}
    with pytest.raises(StudioError, match="'<a>'"):
        sum_loras([(token, 1.0), (token, 1.0)])
