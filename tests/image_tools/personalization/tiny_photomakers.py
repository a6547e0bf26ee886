"""Tiny PhotoMakers of both versions with random weights, for the tiny SDXL pipeline."""

from __future__ import annotations

import torch

from image_tools.diffusion.lora_apply import prior_modules
from image_tools.personalization.photomaker_encoder import (
    FaceShape,
    IdEncoderShape,
    new_id_encoder,
)
from image_tools.personalization.photomaker_files import PhotoMakerFile
from tests.image_tools.personalization.subjects import images_of, train_numbers
from tests.image_tools.random_loras import random_lora

__all__ = ["FACE", "SHAPES", "faces_of", "portraits", "tiny_encoder", "tiny_photomaker"]

FACE = FaceShape(width=8, hidden=32, tokens=2, depth=2)
SIZES = {
    "image_size": 8,
    "patch_size": 4,
    "hidden": 16,
    "intermediate": 32,
    "layers": 2,
    "projections": (12, 20),
}
SHAPES = {"v1": IdEncoderShape(**SIZES), "v2": IdEncoderShape(**SIZES, face=FACE)}


def tiny_encoder(version: str, seed: int = 3):
    """An ID encoder with numbers everywhere."""
    encoder = new_id_encoder(SHAPES[version])
    train_numbers(encoder.parameters(), seed=seed)
    return encoder.eval().requires_grad_(False)


def tiny_photomaker(prior, version: str) -> PhotoMakerFile:
    """An ID encoder and a LoRA for the attention of a prior's denoiser."""
    modules = {"unet": prior_modules(prior)["unet"]}
    # Strong where the text comes in, which tiny denoisers hardly look at.
    lora = random_lora(
        modules,
        ending=("to_q", "to_k", "to_v", "to_out.0"),
        alpha=lambda name: 20.0 if name.endswith(("attn2.to_v", "attn2.to_out.0")) else 1.0,
    )
    return PhotoMakerFile(tiny_encoder(version), lora)


def portraits(count: int = 2):
    """Photos of somebody."""
    return images_of(count, size=16, seed=5)


def faces_of(count: int = 2):
    """Embeddings of the faces in them."""
    return torch.randn(count, FACE.width, generator=torch.Generator().manual_seed(6))
