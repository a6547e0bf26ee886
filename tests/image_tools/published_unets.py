"""Denoisers of published settings (unet/config.json of their folders), at full size and empty."""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["SETTINGS", "SIDES", "published_unet"]

SETTINGS = {
    "SD1.5": {"sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "SD2.1-768": {
        "sample_size": 96,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "SDXL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
SIDES = {name: settings["sample_size"] for name, settings in SETTINGS.items()}
"""Rows and columns of their latents."""


@cache
def published_unet(name: str):
    """A denoiser without storage."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**SETTINGS[name])
