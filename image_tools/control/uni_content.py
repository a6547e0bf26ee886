"""What Uni-ControlNet's global adapter reads of a picture: its colours, or what CLIP sees.

embedding = content_embedding(picture, None, width=384, key="method.content")
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.color_embedding import color_embedding
from image_tools.errors import UnsupportedModel
from image_tools.vision.clip_images import load_clip_images

__all__ = ["CONTENT_SIZE", "content_embedding"]

CONTENT_SIZE = 224
"""Pixels of a side: what CLIP looks at, and more than enough for colours."""


@torch.no_grad()
def content_embedding(
    picture: Float[Tensor, "1 h w 3"], encoder: str | None, *, width: int, key: str
) -> Float[Tensor, "1 width"]:
    """An embedding of a picture; CLIP's are not normalised.

    Args:
        picture: in 0..1.
        encoder: folder of a CLIP vision model; None for the colours alone.
        width: how many numbers the adapter reads.
        key: what errors call the setting.

    Raises:
        WeightsMissing: the encoder is not there.
        UnsupportedModel: it makes embeddings of another width than the adapter reads.
    """
    if encoder is None:
        embedding = color_embedding(picture)
    else:
        embedding = load_clip_images(encoder, picture.device).pooled(picture)
    if embedding.shape[1] != width:
        raise UnsupportedModel(
            f"{key}.encoder: makes {embedding.shape[1]} numbers of a picture, the adapter reads "
            f"{width} - expected the encoder that the adapter was trained with. Name its folder."
        )
    return embedding
