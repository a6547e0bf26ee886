"""A LoRA that belongs to a tool: on a prior's denoiser, and acting only where the tool does.

lora = SwitchedLora(prior, file.lora, weight=1.0)
with lora.on():
    prior.predict_noise(latents, t, condition)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from image_tools.diffusion.lora import adapted_layers, gradient_flags, restore_flags
from image_tools.diffusion.lora_apply import (
    active_loras,
    attach_lora,
    detach_lora,
    loras_active,
)
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.prior import DiffusionPrior

__all__ = ["SwitchedLora"]


class SwitchedLora:
    """Deltas of the denoiser that are off unless asked."""

    def __init__(self, prior: DiffusionPrior, lora: LoraFile, *, weight: float) -> None:
        """Attach them, switched off.

        Raises:
            UnsupportedModel: they were made for another denoiser.
        """
        self.modules, self.weight = {"unet": prior.unet}, weight
        taken = getattr(prior.unet, "peft_config", {})
        self.name = next(n for k in range(len(taken) + 1) if (n := f"tool{k}") not in taken)
        attach_lora(self.modules, lora, name=self.name)
        layers = adapted_layers(self.modules["unet"])
        flags = gradient_flags(layers)
        for layer in layers:
            layer.set_adapter([name for name in layer.active_adapters if name != self.name])
        restore_flags(flags)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, they act on top of what does already."""
        acting = active_loras(self.modules)
        with loras_active(self.modules, {**acting, self.name: self.weight}):
            yield

    def remove(self) -> None:
        """Take them off."""
        detach_lora(self.modules, self.name)
