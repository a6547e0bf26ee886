"""What trainers do with stock diffusers modules: write them, recompute their activations, average.

with gradient_checkpointing([prior.unet, controlnet], config.checkpointing):
    loop.run(loss)
write_module(controlnet, folder / "controlnet")
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from image_tools.diffusion.recomputation import recomputed_with_operations

__all__ = ["WeightAverage", "gradient_checkpointing", "write_module"]


def write_module(module: nn.Module, folder: Path) -> None:
    """Write a stock folder that appears whole or not at all."""
    partial = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    module.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


@contextmanager
def gradient_checkpointing(modules: Sequence[nn.Module], wanted: bool) -> Iterator[None]:
    """Recompute activations for the time of the training, with the attention that they had."""
    if wanted:
        for module in modules:
            module.enable_gradient_checkpointing(recomputed_with_operations(module))
    try:
        yield
    finally:
        if wanted:
            for module in modules:
                module.disable_gradient_checkpointing()


class WeightAverage:
    """Exponential average of weights (EMA), to be used in their place after the training.

    Averages are parameters without gradients, which optimizers skip. In a loop's own list of
    parameters they are saved and restored with the weights that they are an average of.

    Attributes:
        parameters: by the weights' names.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        """Begin at the weights themselves."""
        self._weights, self.decay = weights, decay
        self.parameters = {
            name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps; early ones count less, (1 + n) / (10 + n)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.parameters.items():
            average.lerp_(self._weights[name].detach(), 1.0 - decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the averages in the place of the weights."""
        for name, average in self.parameters.items():
            self._weights[name].copy_(average)
