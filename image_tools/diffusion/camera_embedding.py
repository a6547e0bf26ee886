"""Telling a UNet from where the object is seen: a stock class embedding fed with camera matrices.

A flattened camera-to-world matrix (16 numbers) passes Linear, SiLU, Linear and is added to the time
embedding, as in MVDream (arXiv 2308.16512, section 3.2) and in ProlificDreamer's critic (arXiv
2305.16213, appendix C). In diffusers that is ``class_embed_type="projection"``, so such a UNet
saves and loads as a stock folder. Off means *absent*: a camera of zeros still adds the biases.

Deviation: the last layer starts at zero, so that an untrained embedding changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "CAMERA_WIDTH",
    "add_camera_embedding",
    "camera_embedding_off",
    "camera_embedding_swapped",
    "camera_vector",
    "has_camera_embedding",
    "make_camera_embedding",
    "remove_camera_embedding",
]

CAMERA_WIDTH = 16
MIN_DISTANCE = 1e-8  # a camera at the origin has no direction; its translation stays zero


def make_camera_embedding(unet: nn.Module, generator: torch.Generator) -> nn.Module:
    """A new embedding, float32 on the UNet's device, that outputs zeros until it is trained.

    Args:
        unet: a diffusers UNet2DConditionModel; only its width and device are read.
        generator: draws the first layer.
    """
    from diffusers.models.embeddings import TimestepEmbedding

    embedding = TimestepEmbedding(CAMERA_WIDTH, unet.time_embedding.linear_2.out_features)
    bound = 1.0 / math.sqrt(CAMERA_WIDTH)  # PyTorch's own for a linear layer
    with torch.no_grad():
        for parameter in embedding.linear_1.parameters():
            draw = torch.rand(parameter.shape, generator=generator, device=generator.device)
            parameter.copy_(bound * (2.0 * draw - 1.0))
        for parameter in embedding.linear_2.parameters():
            parameter.zero_()
    return embedding.to(next(unet.parameters()).device)


def add_camera_embedding(unet: nn.Module, generator: torch.Generator) -> None:
    """Give the UNet a camera embedding of its own and note it in its configuration, for saving.

    Raises:
        ValueError: if it has a class embedding, or its configuration has no room for one (SDXL).
    """
    if has_camera_embedding(unet):
        raise ValueError("The UNet has a class embedding already. Remove it first.")
    width = unet.config.projection_class_embeddings_input_dim
    if width not in (None, CAMERA_WIDTH):
        raise ValueError(
            f"The UNet's projection_class_embeddings_input_dim is {width}, which its size and text "
            f"conditions use (SDXL). Expected none, to note the camera's {CAMERA_WIDTH}."
        )
    unet.class_embedding = make_camera_embedding(unet, generator).to(unet.dtype)
    unet.register_to_config(
        class_embed_type="projection", projection_class_embeddings_input_dim=CAMERA_WIDTH
    )


def remove_camera_embedding(unet: nn.Module) -> None:
    """Make the UNet a plain one again; one without a camera embedding is left alone."""
    if not has_camera_embedding(unet):
        return
    unet.class_embedding = None
    unet.register_to_config(class_embed_type=None, projection_class_embeddings_input_dim=None)


def has_camera_embedding(unet: nn.Module) -> bool:
    """Whether the UNet wants class labels."""
    return unet.class_embedding is not None


@contextmanager
def camera_embedding_swapped(unet: nn.Module, embedding: nn.Module | None) -> Iterator[None]:
    """Inside, the UNet has this class embedding, or none; afterwards the one it had before."""
    before = unet.class_embedding
    unet.class_embedding = embedding
    try:
        yield
    finally:
        unet.class_embedding = before


@contextmanager
def camera_embedding_off(unet: nn.Module) -> Iterator[None]:
    """Inside, the UNet is a plain one; a UNet without a camera embedding is left alone."""
    if not has_camera_embedding(unet):
        yield
        return
    with camera_embedding_swapped(unet, None):
        yield


def camera_vector(c2w: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 16"]:
    """What the embedding reads: ``c2w`` row by row, its translation scaled to length 1.

    Returns:
        a new tensor; ``c2w`` is not changed.
    """
    c2w = c2w.clone()
    translation = c2w[:, :3, 3]
    c2w[:, :3, 3] = translation / translation.norm(dim=1, keepdim=True).clamp(min=MIN_DISTANCE)
    return c2w.flatten(1)
