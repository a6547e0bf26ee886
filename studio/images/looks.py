"""Embeddings of pictures whose look is copied: their colours, or what a CLIP vision model sees."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.color_embedding import color_embedding
from image_tools.errors import UnsupportedModel
from image_tools.vision.clip_images import load_clip_images
from studio.images.method_configs import UniContentConfig
from studio.images.reading import read_picture

__all__ = ["look_embedding"]

READ_SIZE = 224  # pixels; what CLIP looks at, and more than enough for colours


@torch.no_grad()
def look_embedding(config: UniContentConfig, key: str, *, width: int) -> Float[Tensor, "1 width"]:
    """What the global adapter reads of a picture: embeddings of CLIP's are not normalised.

    Raises:
        ConfigError: the picture cannot be read.
        WeightsMissing: the encoder is not there.
        UnsupportedModel: it makes embeddings of another width than the adapter reads.
    """
    picture = read_picture(config.path, f"{key}.path", size=READ_SIZE)
    if config.encoder is None:
        embedding = color_embedding(picture)
    else:
        embedding = load_clip_images(config.encoder, picture.device).pooled(picture)
    if embedding.shape[1] != width:
        raise UnsupportedModel(
            f"{key}.encoder: makes {embedding.shape[1]} numbers of a picture, the adapter reads "
            f"{width} - expected the encoder that the adapter was trained with. Name its folder."
        )
    return embedding
