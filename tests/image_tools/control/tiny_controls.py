"""Tiny ControlNets that do something, and condition images for them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["condition_images", "tiny_controlnet"]


def tiny_controlnet(prior, *, seed: int = 5, levels: int | None = None, **settings):
    """A stock ControlNet copied from a prior's denoiser, with numbers in its last convolutions.

    ``levels`` of its condition image's convolutions; None for as many as the prior's VAE wants.
    """
    from diffusers import ControlNetModel

    stride = prior.image_size // prior.latent_size
    widths = (4, 8, 12, 16)[: levels or stride.bit_length()]
    model = ControlNetModel.from_unet(prior.unet, conditioning_embedding_out_channels=widths)
    model.register_to_config(**settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("controlnet_"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def condition_images(prior, count: int = 1, *, seed: int = 1) -> Tensor:
    """Smooth random images of the prior's size, away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 0.8 + 0.1
    size = (prior.image_size, prior.image_size)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").movedim(1, -1)
