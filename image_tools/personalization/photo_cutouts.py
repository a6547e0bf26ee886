"""A subject's photos on white: cut out, and framed as a prior's own images are.

A photo's own transparency says where its subject is; where there is none, what all photos have in
common does (:mod:`image_tools.vision.cutout`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.vision.cutout import cut_out
from image_tools.vision.cutout_configs import CutoutConfig

__all__ = ["on_white"]

logger = logging.getLogger(__name__)

# A cut-out that is less or more of the photo than this has found nothing, or everything.
SOUND_SHARES = (0.01, 0.9)


def on_white(
    images: Float[Tensor, "n h w 3"],
    masks: Float[Tensor, "n h w"],
    paths: Sequence[Path],
    config: CutoutConfig,
    *,
    size: int,
) -> tuple[Float[Tensor, "n size size 3"], Float[Tensor, "n size size"]]:
    """Photos and masks of the wanted size, with white around the subject.

    A photo in which nothing, or everything, was found stays as it is, with a warning.

    Args:
        images: sRGB colours in 0..1, on white where a photo is transparent.
        masks: 0 where a photo is transparent.
        paths: where each photo comes from.
        config: how.
        size: rows and columns of the result.
    """
    masks = masks.clone()
    is_opaque = masks.flatten(1).amin(1) == 1.0
    if is_opaque.any():
        masks[is_opaque] = cut_out(images[is_opaque], config)
    share = masks.flatten(1).mean(1)
    is_found = (share > SOUND_SHARES[0]) & ((share < SOUND_SHARES[1]) | ~is_opaque)
    framed = []
    for image, mask, path, found in zip(images, masks, paths, is_found.tolist(), strict=True):
        if not found:
            logger.warning(
                "The subject of '%s' could not be told from its surroundings, and the photo stays "
                "as it is. Save it as PNG with a transparent background, or leave it out.",
                path,
            )
            mask = torch.ones_like(mask)
        white = torch.cat([image * mask[..., None] + 1.0 - mask[..., None], mask[..., None]], -1)
        if found and config.fill is not None:
            white = _framed(white, config.fill)
        framed.append(_shrunk(white, size))
    stacked = torch.stack(framed)
    return stacked[..., :3], stacked[..., 3]


def _framed(image: Float[Tensor, "h w 4"], fill: float) -> Float[Tensor, "s s 4"]:
    """The square in whose middle the subject takes the share ``fill``."""
    rows, columns = (image[..., 3] > 0.5).nonzero(as_tuple=True)
    if len(rows) == 0:
        return image
    low = torch.stack([rows.min(), columns.min()])
    high = torch.stack([rows.max(), columns.max()]) + 1
    side = max(1, round(float((high - low).max()) / fill))
    top, left = ((low + high - side) // 2).tolist()
    wide = F.pad(image[..., :3].movedim(-1, 0), (side,) * 4, value=1.0)
    masks = F.pad(image[None, ..., 3], (side,) * 4)
    whole = torch.cat([wide, masks]).movedim(0, -1)
    return whole[top + side : top + 2 * side, left + side : left + 2 * side]


def _shrunk(image: Float[Tensor, "h w c"], size: int) -> Float[Tensor, "size size c"]:
    """The image in the wanted size."""
    if image.shape[:2] == (size, size):
        return image
    rows = image.movedim(-1, 0)[None]
    small = F.interpolate(rows, (size, size), mode="bicubic", antialias=True)
    return small[0].movedim(0, -1).clamp(0.0, 1.0)
