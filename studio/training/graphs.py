"""Networks as CUDA graphs: one launch where a small network would need thousands.

The pocket networks are so small that a fast card computes a layer sooner than the host can ask for
the next one. A captured network replays its forward and backward pass by one request each.

    denoise = captured(Denoiser(unet), (z_t, t, states))
    v = denoise(z_t, t, states)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["Denoiser", "captured"]


class Denoiser(nn.Module):
    """A stock UNet as a function of tensors alone."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        """Call ``unet``."""
        super().__init__()
        self.unet = unet

    def forward(self, z_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """What the network predicts of noisy latents ``z_t``, as :mod:`diffusers` calls it."""
        return self.unet(z_t, t, encoder_hidden_states=states).sample


def captured(module: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
    """``module``, replayed from a graph where ``example`` is on a CUDA device.

    Args:
        module: a function of tensors, without randomness, to be trained.
        example: arguments of the shapes, types and device of all later ones; other shapes fail.
    """
    if not example[0].is_cuda:
        return module
    arguments = tuple(tensor.detach().clone() for tensor in example)
    with torch.cuda.device(example[0].device):  # graphs are captured on the current device
        return torch.cuda.make_graphed_callables(module, arguments)
