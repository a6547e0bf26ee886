"""LoRAs with random numbers for every linear and convolution layer of real models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_names import strip_text_model

__all__ = ["layer_weights", "random_delta", "random_lora", "same_changes"]


def layer_weights(modules: Mapping[Section, nn.Module]) -> dict[tuple[Section, str], Tensor]:
    """Weights of all linear and convolution layers, by the names that LoRA files have for them."""
    return {
        (section, name if section == "unet" else strip_text_model(name)): layer.weight
        for section, module in modules.items()
        for path, layer in module.named_modules()
        for name in [path.removesuffix(".base_layer")]
        if type(layer) in (nn.Linear, nn.Conv2d) and ".lora_" not in path
    }


def random_delta(
    weight: Tensor, *, rank: int, alpha: float, generator: torch.Generator
) -> LoraDelta:
    """A delta that fits a weight."""
    ones = (1,) * (weight.ndim - 2)
    down = 0.2 * torch.randn(rank, *weight.shape[1:], generator=generator)
    up = 0.2 * torch.randn(weight.shape[0], rank, *ones, generator=generator)
    return LoraDelta(down, up, alpha)


def random_lora(
    modules: Mapping[Section, nn.Module],
    *,
    seed: int = 0,
    ending: str | tuple[str, ...] = "",
    rank: Callable[[str], int] = lambda name: 3 if name.endswith(("conv1", "fc1")) else 2,
    alpha: Callable[[str], float] = lambda name: 1.0 if name.endswith(("to_q", "q_proj")) else 5.0,
) -> LoraFile:
    """A LoRA over all layers whose names have the ending; ranks and alphas differ by default."""
    generator = torch.Generator().manual_seed(seed)
    sections: dict[Section, dict[str, LoraDelta]] = {}
    for (section, name), weight in layer_weights(modules).items():
        if name.endswith(ending):
            sections.setdefault(section, {})[name] = random_delta(
                weight, rank=rank(name), alpha=alpha(name), generator=generator
            )
    return LoraFile(sections, layers_per_block=1)


def same_changes(first: LoraFile, second: LoraFile, tolerance: float = 1e-6) -> bool:
    """Whether two LoRAs change the same layers by the same amounts."""
    mine = {(section, name): delta for section, name, delta in first.deltas()}
    theirs = {(section, name): delta for section, name, delta in second.deltas()}
    if mine.keys() != theirs.keys():
        return False
    return all(
        delta.shape == theirs[key].shape
        and torch.allclose(delta.weight(), theirs[key].weight(), rtol=0.0, atol=tolerance)
        for key, delta in mine.items()
    )
