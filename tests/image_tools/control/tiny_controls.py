"""Tiny ControlNets and adapters that do something, and condition images for them."""

from __future__ import annotations

import torch
from torch import Tensor

from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import GlobalAdapterSettings, LocalAdapterSettings

__all__ = ["condition_images", "tiny_controlnet", "tiny_global_adapter", "tiny_local_adapter"]


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


def tiny_local_adapter(prior, *, seed: int = 6) -> LocalAdapter:
    """A local adapter of two maps for a prior, with numbers in all convolutions that start at 0."""
    settings = LocalAdapterSettings(
        conditions=("edge", "depth"),
        stem_widths=(4, 4, 4, 4, 4),
        level_widths=(8, 12),
        image_factor=prior.image_size // prior.latent_size,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        adapter = LocalAdapter.from_unet(prior.unet, settings)
        for name, parameter in adapter.named_parameters():
            if name.startswith("controlnet_") or "zero_convs" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter.eval().requires_grad_(False)


def tiny_global_adapter(prior, *, seed: int = 7) -> GlobalAdapter:
    """A global adapter whose tokens have the width of the prior's text."""
    width = prior.unet.config.cross_attention_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GlobalAdapter(GlobalAdapterSettings(width=width, tokens=4)).eval()


def condition_images(prior, count: int = 1, *, seed: int = 1) -> Tensor:
    """Smooth random images of the prior's size, away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 0.8 + 0.1
    size = (prior.image_size, prior.image_size)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").movedim(1, -1)
