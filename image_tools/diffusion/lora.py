"""Low-rank weight deltas (LoRA, arXiv 2106.09685) on a UNet's attention that stay off unless asked.

Layers are peft's, put in by diffusers' own ``add_adapter``. Inside ``on()`` the deltas act on top
of whatever other adapters are active; outside, the UNet predicts bit for bit as if they were not
there. Switching adapters in peft also switches ``requires_grad``, of other people's adapters too,
so every flag is put back as it was found.

    lora = LoraAdapter(unet, rank=4, generator=generator)
    with lora.on():
        output = unet(...)
    lora.remove()
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["LORA_TARGETS", "LoraAdapter", "adapted_layers", "gradient_flags", "restore_flags"]

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class LoraAdapter:
    """Trainable low-rank deltas, float32 even on a UNet in half precision."""

    def __init__(
        self,
        unet: nn.Module,
        *,
        rank: int,
        generator: torch.Generator,
        targets: tuple[str, ...] = LORA_TARGETS,
    ) -> None:
        """Add the deltas, switched off and equal to zero.

        Args:
            unet: a diffusers UNet2DConditionModel.
            rank: rank of each delta; the deltas are not scaled down (alpha = rank).
            generator: draws the A matrices; the B matrices start at zero.
            targets: endings of the names of the linear layers that get a delta.
        """
        from peft import LoraConfig

        self.unet = unet
        self.name = _free_name(unet)
        found = {id(layer): layer.active_adapters for layer in adapted_layers(unet)}
        flags = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            unet.add_adapter(settings, self.name)  # draws weights that are replaced below
        self._layers = adapted_layers(unet)
        for layer in self._layers:
            layer.set_adapter(found.get(id(layer), []))
        self.parameters = self._own_parameters()
        self._draw(generator)
        for parameter in self.parameters.values():
            parameter.requires_grad_(False)
        restore_flags(flags)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the deltas act and take gradients; everything is restored afterwards."""
        flags = gradient_flags(self._layers)
        before = [(layer.active_adapters, layer.disable_adapters) for layer in self._layers]
        try:
            for layer, (active, is_off) in zip(self._layers, before, strict=True):
                if is_off:
                    layer.enable_adapters(True)
                layer.set_adapter([*([] if is_off else active), self.name])
            restore_flags(flags)
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            yield
        finally:
            for layer, (active, is_off) in zip(self._layers, before, strict=True):
                layer.set_adapter(list(active))
                if is_off:
                    layer.enable_adapters(False)
            restore_flags(flags)

    def remove(self) -> None:
        """Take the deltas off; a second call does nothing."""
        if self.name not in getattr(self.unet, "peft_config", {}):
            return
        flags = gradient_flags(self._layers)
        if len(self.unet.peft_config) == 1:
            self.unet.unload_lora()
        else:
            self.unet.delete_adapters(self.name)
        restore_flags(flags)

    def _own_parameters(self) -> dict[str, nn.Parameter]:
        """By name in the UNet, without the adapter's name; float32."""
        tag = f".{self.name}."
        own = {n.replace(tag, "."): p for n, p in self.unet.named_parameters() if tag in n}
        for parameter in own.values():
            parameter.data = parameter.data.float()
        return own

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """A as peft draws it, uniform in 1 / sqrt(inputs), but from our generator; B zero."""
        for name, parameter in self.parameters.items():
            if ".lora_B." in name:
                parameter.zero_()
                continue
            bound = 1.0 / math.sqrt(parameter[0].numel())
            draw = torch.rand(parameter.shape, generator=generator, device=generator.device)
            parameter.copy_(bound * (2.0 * draw - 1.0))


def _free_name(unet: nn.Module) -> str:
    """A name that no other adapter of the UNet has."""
    taken = getattr(unet, "peft_config", {})
    return next(n for k in range(len(taken) + 1) if (n := f"delta{k}") not in taken)


def adapted_layers(model: nn.Module) -> list[nn.Module]:
    """Layers of peft in a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def gradient_flags(layers: list[nn.Module]) -> list[tuple[nn.Parameter, bool]]:
    """``requires_grad`` of all adapters' parameters; peft leaves those of the model's own alone."""
    return [
        (parameter, parameter.requires_grad)
        for layer in layers
        for name in layer.adapter_layer_names
        for parameter in getattr(layer, name).parameters()
    ]


def restore_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
    """Put ``requires_grad`` back."""
    for parameter, wants_gradient in flags:
        parameter.requires_grad_(wants_gradient)
