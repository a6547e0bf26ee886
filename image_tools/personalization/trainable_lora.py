"""A new LoRA on a prior, for training: shaped by a config, started at zero, taken off afterwards.

A is normal with deviation 1 / rank and B zero, as peft's "gaussian" and the DreamBooth scripts have
it, so the prior predicts as before (bit for bit for LoRA; DoRA divides and multiplies by the same
length). Only the new parameters are handed out; everything else on the prior stays frozen, other
adapters included.

    lora = TrainableLora(prior, LoraShapeConfig(rank=8), name="subject", generator=generator)
    loop = TuningLoop(lora.groups(text_learning_rate=5e-6), ...)
    with lora.off(): ...            # the prior without it, text encoders included
    write_lora(path, lora.file(), layout="diffusers")
    lora.detach()
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from image_tools.diffusion.lora import adapted_layers
from image_tools.diffusion.lora_apply import (
    active_loras,
    attach_to_prior,
    collect_lora,
    detach_from_prior,
    loras_active,
    prior_modules,
)
from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_names import strip_text_model
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.dreambooth_configs import LoraShapeConfig
from image_tools.personalization.loop import ParameterGroup
from renderers.errors import StudioError

__all__ = ["TrainableLora", "new_lora"]


class TrainableLora:
    """A LoRA that a trainer owns; it acts on the prior until it is detached."""

    def __init__(
        self,
        prior: DiffusionPrior,
        config: LoraShapeConfig,
        *,
        name: str,
        generator: torch.Generator,
        start: LoraFile | None = None,
    ) -> None:
        """Attach it.

        Args:
            prior: gets the deltas.
            config: which layers and ranks.
            name: what it is called on the prior.
            generator: draws A.
            start: a LoRA to go on from, instead of a new one; its own shapes count.

        Raises:
            StudioError: no layer of the prior has a name that the config asks for.
        """
        self.prior, self.name = prior, name
        if config.text_rank or (start is not None and set(start.sections) - {"unet"}):
            _ = prior.text.towers  # reads them
        lora = start or new_lora(prior, config, generator)
        self.changes_text = bool(set(lora.sections) - {"unet"})
        attach_to_prior(prior, lora, name=name)
        self.modules = prior_modules(prior)
        self.parameters = {
            f"{section}.{key}": value
            for section, module in self.modules.items()
            for key, value in _own_parameters(module, name).items()
        }

    def groups(self, *, text_learning_rate: float) -> list[ParameterGroup]:
        """What to train: the denoiser's part at the loop's rate, the text encoders' at its own."""
        unet = {n: p for n, p in self.parameters.items() if n.startswith("unet.")}
        text = {n: p for n, p in self.parameters.items() if n not in unet}
        groups = [ParameterGroup(unet)] if unet else []
        return groups + ([ParameterGroup(text, text_learning_rate)] if text else [])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, everything acts but this."""
        others = {n: w for n, w in active_loras(self.modules).items() if n != self.name}
        with loras_active(self.modules, others):
            yield

    def file(self) -> LoraFile:
        """What it has become, as a file's content."""
        return collect_lora(self.modules, self.name)

    def detach(self) -> None:
        """Leave the prior as it was found."""
        detach_from_prior(self.prior, self.name)


def new_lora(
    prior: DiffusionPrior, config: LoraShapeConfig, generator: torch.Generator
) -> LoraFile:
    """Deltas that change nothing yet.

    Raises:
        StudioError: no layer of the prior has a name that the config asks for.
    """
    sections: dict[Section, dict[str, LoraDelta]] = {}
    for section, module in prior_modules(prior).items():
        is_unet = section == "unet"
        rank = config.rank if is_unet else config.text_rank
        targets = config.targets if is_unet else config.text_targets
        deltas = {}
        for path, layer in _layers(module):
            shape = _shape_of(path, rank, config) if path.endswith(_endings(targets)) else (0, 0.0)
            if rank and shape[0]:
                name = path if is_unet else strip_text_model(path)
                deltas[name] = _new_delta(layer.weight, *shape, config.variant, generator)
        if rank and not deltas:
            raise StudioError(
                f"No layer of the {section} ends in {', '.join(targets)} - expected endings such "
                "as to_q or q_proj. Correct the LoRA's targets or patterns."
            )
        if deltas:
            sections[section] = deltas
    return LoraFile(sections)


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Linear and convolution layers, also below other adapters, by the plain module's names."""
    for path, layer in module.named_modules():
        parts = path.split(".")
        if isinstance(layer, nn.Linear | nn.Conv2d) and not {"lora_A", "lora_B"} & set(parts):
            yield path.removesuffix(".base_layer"), layer


def _endings(targets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{target}" for target in targets)


def _shape_of(path: str, rank: int, config: LoraShapeConfig) -> tuple[int, float]:
    """Rank and alpha of a layer."""
    for pattern in config.patterns:
        if re.search(pattern.layers, path):
            return pattern.rank, _or(pattern.alpha, pattern.rank)
    return rank, _or(config.alpha, rank)


def _or(alpha: float | None, rank: int) -> float:
    return float(rank) if alpha is None else alpha


def _new_delta(
    weight: Tensor, rank: int, alpha: float, variant: str, generator: torch.Generator
) -> LoraDelta:
    ones = (1,) * (weight.ndim - 2)
    down = torch.randn(rank, *weight.shape[1:], generator=generator) / rank
    up = torch.zeros(weight.shape[0], rank, *ones)
    is_dora = variant == "dora"
    length = weight.detach().float().cpu().flatten(1).norm(dim=1) if is_dora else None
    return LoraDelta(down, up, alpha, length)


def _own_parameters(module: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters, float32 even on a model in half precision."""
    own = {}
    layers = {id(layer) for layer in adapted_layers(module)}
    for path, layer in module.named_modules():
        if id(layer) not in layers or name not in layer.lora_A:
            continue
        parts = {"lora_A": layer.lora_A, "lora_B": layer.lora_B}
        if name in layer.lora_magnitude_vector:
            parts["magnitude"] = layer.lora_magnitude_vector
        for part, holder in parts.items():
            parameter = holder[name].weight
            parameter.data = parameter.data.float()
            own[f"{path}.{part}"] = parameter
    return own
