"""A tiny real CLIP vision model with random weights, in memory and as a folder."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["tiny_clip", "write_tiny_clip"]


def tiny_clip(*, side: int = 32, patch: int = 8, width: int = 32, pooled: int = 24):
    """A CLIPVisionModelWithProjection of three layers, 17 tokens at the usual size."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=pooled,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(21)
        return CLIPVisionModelWithProjection(config).eval()


def write_tiny_clip(folder: Path, **sizes: int) -> Path:
    """The same model in transformers' layout."""
    tiny_clip(**sizes).save_pretrained(folder)
    return folder
