"""LoRA files on models: attached by name, weighted, switched and taken off exactly.

Layers are peft's. Switching is a context manager that puts back which adapters act, with what
weight, and every ``requires_grad`` flag, because peft changes flags of other people's adapters when
it switches. With nothing active the model predicts bit for bit as without adapters, and so it does
with a weight of 0, which is not active: DoRA would change rows' lengths all the same. diffusers'
``cross_attention_kwargs={"scale": 0}`` is never used: it resets all weights to 1 afterwards.

    modules = {"unet": unet, "text_encoder": text_encoder}
    attach_lora(modules, read_lora(path), name="subject", weight=0.8)
    with loras_active(modules, {"subject": 1.0, "style": 0.6}): ...
    with loras_active(modules, {}): ...  # the base model
    detach_lora(modules, "subject")

On a prior: ``attach_to_prior(prior, lora, name="subject")``, then ``loras_active`` on
``prior_modules(prior)``; prompts are cached under a fingerprint that tells what acts on them.
A critic's adapter (``LoraAdapter.on``) acts on top of what is active when it is switched on.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from image_tools.diffusion.lora import adapted_layers, gradient_flags, restore_flags
from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_metadata import peft_settings
from image_tools.diffusion.lora_names import strip_text_model
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel
from renderers.errors import StudioError

__all__ = [
    "Modules",
    "active_loras",
    "attach_lora",
    "attach_to_prior",
    "collect_lora",
    "detach_from_prior",
    "detach_lora",
    "fingerprint_loras",
    "layers_by_name",
    "loras_active",
    "prior_modules",
]

Modules = Mapping[Section, nn.Module]
"""Models by the section of a LoRA file that changes them."""


def attach_lora(modules: Modules, lora: LoraFile, *, name: str, weight: float = 1.0) -> None:
    """Add a LoRA's deltas to models: frozen, active beside what already is.

    Args:
        modules: a UNet and the text encoders; those that the LoRA leaves alone may be absent.
        lora: what to attach.
        name: what it is called on these models.
        weight: factor of its deltas.

    Raises:
        UnsupportedModel: if the models do not have its layers in its shapes; nothing is changed.
        StudioError: if the name is taken or no name.
    """
    _check_name(modules, name)
    fitted = {
        section: _fit(section, modules, deltas)
        for section, deltas in lora.sections.items()
        if deltas
    }
    for section, deltas in fitted.items():
        _attach(modules[section], deltas, name, weight)


def detach_lora(modules: Modules, name: str) -> None:
    """Take a LoRA off; layers that have no other get their own modules back.

    Raises:
        StudioError: if there is none of that name.
    """
    _check_attached(modules, [name])
    for module in modules.values():
        if name in getattr(module, "peft_config", {}):
            _detach(module, name)


@contextmanager
def loras_active(modules: Modules, weights: Mapping[str, float]) -> Iterator[None]:
    """Inside, exactly the named LoRAs act, with these weights; without names, none does.

    Raises:
        StudioError: if there is none of a name.
    """
    _check_attached(modules, weights)
    layers = [layer for module in modules.values() for layer in adapted_layers(module)]
    flags = gradient_flags(layers)
    before = [
        (list(lay.active_adapters), lay.disable_adapters, dict(lay.scaling)) for lay in layers
    ]
    try:
        for layer in layers:
            if layer.disable_adapters:
                layer.enable_adapters(True)
            layer.set_adapter([n for n, weight in weights.items() if weight and n in layer.lora_A])
            for name, weight in weights.items():
                layer.set_scale(name, weight)
        restore_flags(flags)
        yield
    finally:
        for layer, (active, is_off, scaling) in zip(layers, before, strict=True):
            layer.set_adapter(active)
            layer.scaling.update(scaling)
            if is_off:
                layer.enable_adapters(False)
        restore_flags(flags)


def active_loras(modules: Modules) -> dict[str, float]:
    """Names and weights of the adapters that act, in the order of their names."""
    found: dict[str, float] = {}
    for module in modules.values():
        for layer in adapted_layers(module):
            for name in [] if layer.disable_adapters else layer.active_adapters:
                if name in layer.lora_A:
                    found[name] = layer.scaling[name] / _own_scale(layer, name)
    return dict(sorted(found.items()))


def collect_lora(modules: Modules, name: str) -> LoraFile:
    """The deltas of an adapter, trained or attached, as a LoRA with its true alphas.

    The weight that it has on these models is no part of it.

    Raises:
        StudioError: if there is none of that name.
    """
    _check_attached(modules, [name])
    sections: dict[Section, dict[str, LoraDelta]] = {}
    for section, module in modules.items():
        deltas = {
            _file_name(section, path): _collect(layer, name)
            for path, layer in module.named_modules()
            if _holds(layer, name)
        }
        if deltas:
            sections[section] = deltas
    per_block = getattr(getattr(modules.get("unet"), "config", None), "layers_per_block", 2)
    return LoraFile(sections, layers_per_block=per_block if isinstance(per_block, int) else 2)


def layers_by_name(section: Section, module: nn.Module) -> dict[str, nn.Module]:
    """A model's modules by the names that LoRA files have for them."""
    return {_file_name(section, path): layer for path, layer in module.named_modules()}


def fingerprint_loras(modules: Modules) -> str:
    """A hash of the deltas that act and of their weights; empty if none does."""
    digest = hashlib.sha256()
    acts = False
    for section, module in sorted(modules.items()):
        for path, layer in module.named_modules():
            for name in _acting(layer):
                acts = True
                digest.update(f"{section}\0{path}\0{layer.scaling[name]!r}\0".encode())
                for tensor in _tensors(layer, name).values():
                    digest.update(_bytes(tensor))
    return digest.hexdigest()[:32] if acts else ""


def prior_modules(prior: DiffusionPrior) -> dict[Section, nn.Module]:
    """A prior's denoiser and, while they are in memory, its text encoders by section."""
    encoders = [tower.encoder for tower in prior.text.towers] if prior.text.is_loaded else []
    names: list[Section] = ["text_encoder", "text_encoder_2"]
    if prior.text.layout == "penultimate_pooled" and len(encoders) == 1:  # SDXL's refiner
        names = names[1:]
    return {"unet": prior.unet, **dict(zip(names, encoders, strict=False))}


def attach_to_prior(
    prior: DiffusionPrior, lora: LoraFile, *, name: str, weight: float = 1.0
) -> None:
    """``attach_lora`` on a prior, whose prompts are then cached by what acts on them."""
    if set(lora.sections) - {"unet"} and prior.text.towers:  # reads them
        prior.pin_text_encoder()
    attach_lora(prior_modules(prior), lora, name=name, weight=weight)
    prior.fingerprint_parts["lora"] = lambda: fingerprint_loras(prior_modules(prior))


def detach_from_prior(prior: DiffusionPrior, name: str) -> None:
    """``detach_lora`` on a prior."""
    detach_lora(prior_modules(prior), name)


def _fit(section: Section, modules: Modules, deltas: Mapping[str, LoraDelta]) -> dict[str, Any]:
    """Deltas by the model's own names and in its shapes."""
    if section not in modules:
        raise UnsupportedModel(
            f"The LoRA changes {len(deltas)} layers of a {section}, which the model does not have. "
            "Expected a LoRA that was made for this kind of model."
        )
    module = modules[section]
    layers = layers_by_name(section, module)
    paths = {id(layer): path for path, layer in module.named_modules()}
    fitted = {}
    for name, delta in deltas.items():
        layer = layers.get(name)
        base = getattr(layer, "base_layer", layer)
        if not isinstance(base, nn.Linear | nn.Conv2d):
            raise UnsupportedModel(
                f"The LoRA changes '{name}', which the {section} does not have as a linear or "
                "convolution layer. Expected a LoRA that was made for this kind of model."
            )
        fitted[paths[id(layer)]] = _reshaped(delta, base.weight.shape, f"{section}.{name}")
    return fitted


def _reshaped(delta: LoraDelta, shape: torch.Size, name: str) -> LoraDelta:
    """The delta for a weight of a shape; 1x1 convolutions and linear layers are the same thing."""
    if delta.shape == shape:
        return delta
    if delta.shape[0] != shape[0] or delta.down[0].numel() != shape[1:].numel():
        raise UnsupportedModel(
            f"The LoRA's change of '{name}' is {list(delta.shape)}, the model's weight "
            f"{list(shape)}. Expected a LoRA that was made for this kind of model."
        )
    ones = (1,) * (len(shape) - 2)
    down = delta.down.reshape(delta.rank, *shape[1:])
    return LoraDelta(down, delta.up.reshape(shape[0], -1, *ones), delta.alpha, delta.magnitude)


def _attach(module: nn.Module, deltas: dict[str, LoraDelta], name: str, weight: float) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    old_layers = adapted_layers(module)
    active = {id(layer): list(layer.active_adapters) for layer in old_layers}
    is_off = any(layer.disable_adapters for layer in old_layers)
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(LoraConfig(**peft_settings(deltas)), module, name)
    module._hf_peft_config_loaded = True  # what diffusers' and transformers' own methods look at
    for path, delta in deltas.items():
        _fill(module.get_submodule(path), name, delta)
    for layer in adapted_layers(module):
        is_acting = weight and name in layer.lora_A
        layer.set_adapter([*active.get(id(layer), []), *([name] if is_acting else [])])
        layer.set_scale(name, weight)
        if is_off:
            layer.enable_adapters(False)
        for tensor in _tensors(layer, name).values():
            tensor.requires_grad_(False)
    restore_flags(flags)


@torch.no_grad()
def _fill(layer: nn.Module, name: str, delta: LoraDelta) -> None:
    """Put a delta's numbers into a layer of peft."""
    for part, value in (("down", delta.down), ("up", delta.up), ("magnitude", delta.magnitude)):
        if value is not None:
            own = _tensors(layer, name)[part]
            own.copy_(value.reshape(own.shape))


def _detach(module: nn.Module, name: str) -> None:
    flags = gradient_flags(adapted_layers(module))
    for path, layer in list(module.named_modules()):
        if not _holds(layer, name):
            continue
        remaining = [other for other in layer.active_adapters if other != name]
        layer.set_adapter(remaining)
        layer.delete_adapter(name)
        if not layer.lora_A:
            parent, _, child = path.rpartition(".")
            setattr(module.get_submodule(parent), child, layer.get_base_layer())
    del module.peft_config[name]
    if not module.peft_config:
        del module.peft_config
        module._hf_peft_config_loaded = False
    restore_flags(flags)


def _collect(layer: nn.Module, name: str) -> LoraDelta:
    tensors = {part: value.detach().cpu().clone() for part, value in _tensors(layer, name).items()}
    magnitude = tensors.get("magnitude")
    return LoraDelta(
        tensors["down"],
        tensors["up"],
        _own_scale(layer, name) * tensors["down"].shape[0],
        None if magnitude is None else magnitude.flatten(),
    )


def _own_scale(layer: nn.Module, name: str) -> float:
    """Scale of an adapter at weight 1."""
    root = 0.5 if layer.use_rslora.get(name, False) else 1.0
    return layer.lora_alpha[name] / layer.r[name] ** root


def _tensors(layer: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Parameters of one adapter of a layer."""
    if name not in layer.lora_A:
        return {}
    found = {"down": layer.lora_A[name].weight, "up": layer.lora_B[name].weight}
    if name in layer.lora_magnitude_vector:
        found["magnitude"] = layer.lora_magnitude_vector[name].weight
    return found


def _acting(layer: nn.Module) -> list[str]:
    if not hasattr(layer, "lora_A") or layer.disable_adapters:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _holds(layer: nn.Module, name: str) -> bool:
    return name in getattr(layer, "lora_A", {})


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()


def _file_name(section: Section, path: str) -> str:
    return path if section == "unet" else strip_text_model(path)


def _check_name(modules: Modules, name: str) -> None:
    taken = sorted({n for module in modules.values() for n in getattr(module, "peft_config", {})})
    if not name or "." in name:
        raise StudioError(f"The LoRA's name is '{name}'. Expected letters and digits, no dot.")
    if name in taken:
        raise StudioError(
            f"There is already a LoRA '{name}' (attached: {', '.join(taken)}). Give it another "
            "name, or detach the old one first."
        )


def _check_attached(modules: Modules, names: Any) -> None:
    attached = {n for module in modules.values() for n in getattr(module, "peft_config", {})}
    for name in names:
        if name not in attached:
            raise StudioError(
                f"There is no LoRA '{name}'. Attached: {', '.join(sorted(attached)) or 'none'}."
            )
