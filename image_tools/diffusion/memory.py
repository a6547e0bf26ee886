"""Fitting a prior into less memory: number formats, slices, tiles, checkpoints, another device.

device = prior_device(config.memory, scene_device)
apply_memory_options(vae, unet, config.memory)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from image_tools.configs import PriorMemoryConfig
from renderers.errors import BackendMissing

__all__ = [
    "apply_memory_options",
    "prior_device",
    "share_attention_slicing",
    "share_memory_options",
    "vae_dtype",
]

TILES_PER_SIDE = 2


def prior_device(memory: PriorMemoryConfig, scene_device: torch.device) -> torch.device:
    """Where the prior lives.

    Raises:
        BackendMissing: if its own device is not on this machine.
    """
    if memory.device is None:
        return scene_device
    device = torch.device(memory.device)
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[device.type]
    if (device.index or 0) >= present:
        raise BackendMissing(
            f"prior.memory.device is {memory.device!r}, and this machine has {present} of that "
            "kind. Give another one, or nothing for the scene's device; studio doctor lists them."
        )
    return device


def vae_dtype(
    memory: PriorMemoryConfig, settings: Mapping[str, Any], dtype: torch.dtype
) -> torch.dtype:
    """Number format of the VAE beside a denoiser in ``dtype``.

    AutoencoderKL's default for an absent ``force_upcast`` is True.
    """
    if memory.vae_dtype != "auto":
        return getattr(torch, memory.vae_dtype)
    overflows = dtype == torch.float16 and settings.get("force_upcast", True)
    return torch.float32 if overflows else dtype


def apply_memory_options(
    vae: torch.nn.Module, unet: torch.nn.Module, memory: PriorMemoryConfig
) -> None:
    """Switch on what ``memory`` asks for, in a diffusers AutoencoderKL and UNet."""
    options: list[tuple[bool, Callable[[], Any]]] = [
        (memory.vae_slicing, vae.enable_slicing),
        (memory.vae_tiling, lambda: _enable_tiling(vae, unet.config.sample_size)),
        (memory.vae_checkpointing, vae.enable_gradient_checkpointing),
        (memory.attention_slicing, lambda: unet.set_attention_slice("auto")),
    ]
    for is_wanted, enable in options:
        if is_wanted:
            enable()


def share_memory_options(source: torch.nn.Module, vae: torch.nn.Module) -> None:
    """Switch on in ``vae`` what is on in the one that it replaces, tiles of the same size too."""
    if source.use_slicing:
        vae.enable_slicing()
    if source.is_gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if source.use_tiling:
        vae.enable_tiling()
        vae.tile_latent_min_size = source.tile_latent_min_size
        vae.tile_sample_min_size = source.tile_sample_min_size


def share_attention_slicing(source: torch.nn.Module, unet: torch.nn.Module) -> None:
    """Slice attention in ``unet`` where it is sliced in the denoiser that it stands beside."""
    from diffusers.models.attention_processor import SlicedAttnProcessor

    if any(isinstance(p, SlicedAttnProcessor) for p in source.attn_processors.values()):
        unet.set_attention_slice("auto")


def _enable_tiling(vae: torch.nn.Module, latent_size: int) -> None:
    """Tiles of half the prior's own image size.

    The stock tile is as large as the images the VAE was trained on. The prior resizes every render
    to that size, so that stock tiling would never begin.
    """
    vae.enable_tiling()
    tile = max(latent_size // TILES_PER_SIDE, 1)
    vae.tile_latent_min_size = tile
    vae.tile_sample_min_size = tile * 2 ** (len(vae.config.block_out_channels) - 1)
