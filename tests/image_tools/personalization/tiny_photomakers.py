"""Tiny PhotoMakers of both versions with random weights, for any tiny pipeline."""

from __future__ import annotations

import torch

from image_tools.personalization.photomaker_encoder import (
    FaceShape,
    IdEncoderShape,
    new_id_encoder,
)
from image_tools.personalization.photomaker_files import PhotoMakerFile
from tests.image_tools.personalization.subjects import images_of, train_numbers
from tests.image_tools.random_loras import random_lora

__all__ = ["FACE", "faces_of", "portraits", "tiny_encoder", "tiny_photomaker", "tiny_shape"]

FACE = FaceShape(width=8, hidden=32, tokens=2, depth=2)
SDXL_WIDTH = 32  # of the tiny pipeline's text


def tiny_shape(version: str, width: int = SDXL_WIDTH) -> IdEncoderShape:
    """Sizes of a tiny encoder for text of a width."""
    return IdEncoderShape(
        image_size=8,
        patch_size=4,
        hidden=16,
        intermediate=32,
        layers=2,
        projections=(3 * width // 8, 5 * width // 8),
        face=FACE if version == "v2" else None,
    )


def tiny_encoder(version: str, width: int = SDXL_WIDTH):
    """An ID encoder with numbers everywhere."""
    encoder = new_id_encoder(tiny_shape(version, width))
    train_numbers(encoder.parameters(), seed=3)
    return encoder.eval().requires_grad_(False)


def tiny_photomaker(prior, version: str) -> PhotoMakerFile:
    """An ID encoder and a LoRA for the attention of a prior's denoiser."""
    # Strong where the text comes in, which tiny denoisers hardly look at.
    lora = random_lora(
        {"unet": prior.unet},
        ending=("to_q", "to_k", "to_v", "to_out.0"),
        alpha=lambda name: 20.0 if name.endswith(("attn2.to_v", "attn2.to_out.0")) else 1.0,
    )
    width = prior.unet.config.cross_attention_dim
    return PhotoMakerFile(tiny_encoder(version, width), lora)


def portraits(count: int = 2):
    """Photos of somebody."""
    return images_of(count, size=16, seed=5)


def faces_of(count: int = 2):
    """Embeddings of the faces in them."""
    return torch.randn(count, FACE.width, generator=torch.Generator().manual_seed(6))
