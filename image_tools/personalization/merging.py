"""Several LoRAs as one, and one with a smaller rank.

``sum_loras`` is exact: factors side by side are the sum of the changes. ``combine_loras`` works on
dense changes, layer by layer, with peft's rules, and keeps the best approximation of a rank:

    svd               weighted sum, truncated
    magnitude_prune   weighted sum of each change's largest entries
    ties              the same, where entries that disagree in sign are left out (arXiv 2306.01708)
    dare_linear       weighted sum of randomly dropped, rescaled entries (arXiv 2311.03099)
    dare_ties         both

As in peft, the rules of ties divide by the number of changes that agree.

    both = sum_loras([(subject, 1.0), (style, 0.6)])
    both = combine_loras([(subject, 1), (style, 0.6)], method="ties", rank=16, generator=generator)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_factors import check_rank, resized_delta, truncated_delta
from image_tools.errors import UnsupportedModel
from renderers.errors import StudioError

__all__ = [
    "COMBINATIONS",
    "Combination",
    "WeightedLora",
    "combine_loras",
    "deltas_by_layer",
    "resize_lora",
    "sum_loras",
]

Combination = Literal["svd", "magnitude_prune", "ties", "dare_linear", "dare_ties"]
COMBINATIONS: tuple[Combination, ...] = (
    "svd",
    "magnitude_prune",
    "ties",
    "dare_linear",
    "dare_ties",
)
WeightedLora = tuple[LoraFile, float]
"""A LoRA and the factor of its changes."""
_Layer = tuple[Section, str]


def sum_loras(loras: Sequence[WeightedLora]) -> LoraFile:
    """The exact weighted sum; ranks add up.

    Raises:
        UnsupportedModel: if the LoRAs are for different models, or DoRAs.
    """
    return _merged(loras, {layer: _side_by_side(found) for layer, found in _layers(loras).items()})


def combine_loras(
    loras: Sequence[WeightedLora],
    *,
    method: Combination,
    rank: int,
    generator: torch.Generator,
    density: float = 0.5,
) -> LoraFile:
    """A sum by one of peft's rules, as the best approximation of a rank.

    Args:
        loras: LoRAs and their factors.
        method: the rule, see above.
        rank: rank of every layer of the result.
        generator: decides what dare drops.
        density: share of a change's entries that all rules but svd keep, above 0 and at most 1.

    Raises:
        UnsupportedModel: if the LoRAs are for different models, or DoRAs.
        StudioError: for a wrong rank or density.
    """
    check_rank(rank)
    if not 0.0 < density <= 1.0:
        raise StudioError(f"The density is {density}. Expected a share above 0 and at most 1.")
    merged = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density")  # 1 is a fair choice
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for layer, found in _layers(loras).items():
            merged[layer] = truncated_delta(_combine(found, method, density), rank)
    return _merged(loras, merged)


def resize_lora(lora: LoraFile, rank: int) -> LoraFile:
    """The best approximation with at most a rank in every layer."""
    sections: dict[Section, dict[str, LoraDelta]] = {}
    for section, name, delta in lora.deltas():
        sections.setdefault(section, {})[name] = resized_delta(delta, rank)
    return replace(lora, sections=sections)


def deltas_by_layer(loras: Sequence[LoraFile]) -> dict[_Layer, list[LoraDelta | None]]:
    """For every layer that any LoRA changes: each one's delta, in the same shape, or None.

    Raises:
        UnsupportedModel: if shapes differ, or for DoRAs, whose changes are no sums.
    """
    layers: dict[_Layer, list[LoraDelta | None]] = {}
    for index, lora in enumerate(loras):
        if lora.is_dora:
            raise UnsupportedModel(
                f"LoRA {index + 1} of {len(loras)} is a DoRA, whose change is no sum and cannot be "
                "merged. Fuse it into its model and extract a LoRA from the difference."
            )
        for section, name, delta in lora.deltas():
            found = layers.setdefault((section, name), [None] * len(loras))
            first = next((other for other in found if other is not None), delta)
            found[index] = _like(delta, first, name)
    return layers


def _layers(loras: Sequence[WeightedLora]) -> dict[_Layer, list[tuple[LoraDelta, float]]]:
    """Deltas and factors by layer, without the LoRAs that leave it alone."""
    if not loras:
        raise StudioError("There is no LoRA to merge. Expected at least one.")
    factors = [factor for _, factor in loras]
    return {
        layer: [(d, f) for d, f in zip(deltas, factors, strict=True) if d is not None]
        for layer, deltas in deltas_by_layer([lora for lora, _ in loras]).items()
    }


def _like(delta: LoraDelta, first: LoraDelta, name: str) -> LoraDelta:
    """The delta in the shape of another; a 1x1 convolution may be stored as a matrix."""
    if delta.shape == first.shape:
        return delta
    if delta.shape.numel() != first.shape.numel() or delta.shape[0] != first.shape[0]:
        raise UnsupportedModel(
            f"The LoRAs change '{name}' in different shapes, {list(first.shape)} and "
            f"{list(delta.shape)}. Expected LoRAs for the same kind of model."
        )
    down = delta.down.reshape(delta.rank, *first.shape[1:])
    return replace(delta, down=down, up=delta.up.reshape(-1, *first.up.shape[1:]))


def _side_by_side(found: list[tuple[LoraDelta, float]]) -> LoraDelta:
    down = torch.cat([delta.down.float() for delta, _ in found])
    up = torch.cat([factor * delta.scale * delta.up.float() for delta, factor in found], dim=1)
    return LoraDelta(down, up, alpha=float(down.shape[0]))


def _combine(found: list[tuple[LoraDelta, float]], method: Combination, density: float) -> Tensor:
    """The dense change of one layer by a rule of peft."""
    from peft.utils import merge_utils

    changes = [delta.weight() for delta, _ in found]
    factors = torch.tensor([factor for _, factor in found])
    if method == "svd":
        return merge_utils.task_arithmetic(changes, factors)
    rules = {
        "magnitude_prune": merge_utils.magnitude_prune,
        "ties": merge_utils.ties,
        "dare_linear": merge_utils.dare_linear,
        "dare_ties": merge_utils.dare_ties,
    }
    return rules[method](changes, factors, density)


def _merged(loras: Sequence[WeightedLora], deltas: Mapping[_Layer, LoraDelta]) -> LoraFile:
    """One file of merged deltas, with everybody's bundled embeddings."""
    sections: dict[Section, dict[str, LoraDelta]] = {}
    for (section, name), delta in deltas.items():
        sections.setdefault(section, {})[name] = delta
    embeddings: dict[str, Mapping[str, Tensor]] = {}
    for lora, _ in loras:
        twice = sorted(set(embeddings) & set(lora.embeddings))
        if twice:
            raise StudioError(
                f"Two LoRAs bundle an embedding '{twice[0]}'. Expected different tokens; "
                "rename one."
            )
        embeddings |= lora.embeddings
    return LoraFile(sections, embeddings=embeddings, layers_per_block=loras[0][0].layers_per_block)
