"""Embeddings of pictures whose look is copied: their colours, or what a CLIP vision model sees."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.control.color_embedding import color_embedding
from image_tools.diffusion.weights import find_weights
from image_tools.errors import UnsupportedModel
from studio.images.method_configs import UniContentConfig
from studio.images.reading import read_picture

__all__ = ["look_embedding"]

ROLE = "CLIP vision model"
READ_SIZE = 224  # pixels; what CLIP looks at, and more than enough for colours
# Of the pictures that CLIP was trained on (arXiv 2103.00020).
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@torch.no_grad()
def look_embedding(config: UniContentConfig, key: str, *, width: int) -> Float[Tensor, "1 width"]:
    """What the global adapter reads of a picture.

    Raises:
        ConfigError: the picture cannot be read.
        WeightsMissing: the encoder is not there.
        UnsupportedModel: it makes embeddings of another width than the adapter reads.
    """
    picture = read_picture(config.path, f"{key}.path", size=READ_SIZE)
    if config.encoder is None:
        embedding = color_embedding(picture)
    else:
        embedding = _seen_by_clip(picture, Path(config.encoder).expanduser())
    if embedding.shape[1] != width:
        raise UnsupportedModel(
            f"{key}.encoder: makes {embedding.shape[1]} numbers of a picture, the adapter reads "
            f"{width} - expected the encoder that the adapter was trained with. Name its folder."
        )
    return embedding


def _seen_by_clip(picture: Float[Tensor, "1 h w 3"], folder: Path) -> Float[Tensor, "1 width"]:
    """The projected embedding, not normalised, as Uni-ControlNet was trained with."""
    from transformers import CLIPVisionModelWithProjection

    find_weights(folder, "model", role=ROLE)
    model = CLIPVisionModelWithProjection.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    ).eval()
    side = model.config.image_size
    pixels = F.interpolate(picture.movedim(-1, 1), (side, side), mode="bicubic", antialias=True)
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return model(pixel_values=(pixels.clamp(0.0, 1.0) - mean) / std).image_embeds
