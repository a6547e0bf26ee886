"""Embeddings of pictures whose look is copied, from their files."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from image_tools.control.uni_configs import UniContentConfig
from image_tools.control.uni_content import CONTENT_SIZE, content_embedding
from studio.images.reading import read_picture

__all__ = ["look_embedding"]


def look_embedding(config: UniContentConfig, key: str, *, width: int) -> Float[Tensor, "1 width"]:
    """What the global adapter reads of a picture.

    Raises:
        ConfigError: the picture cannot be read.
        WeightsMissing: the encoder is not there.
        UnsupportedModel: it makes embeddings of another width than the adapter reads.
    """
    picture = read_picture(config.path, f"{key}.path", size=CONTENT_SIZE)
    return content_embedding(picture, config.encoder, width=width, key=key)
