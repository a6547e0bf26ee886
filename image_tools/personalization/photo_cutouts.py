"""A subject's photos on white: cut out, and framed as a prior's own images are.

A photo's own transparency says where its subject is; where there is none, what all photos have in
common does (:mod:`image_tools.vision.cutout`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.vision.cutout import cut_out
from image_tools.vision.cutout_configs import CutoutConfig

__all__ = ["on_white"]

# A cut-out that is less or more of the photo than this has found nothing, or everything.
SOUND_SHARES = (0.01, 0.9)


def on_white(
    images: Float[Tensor, "n h w 3"],
    masks: Float[Tensor, "n h w"],
    config: CutoutConfig,
    *,
    size: int,
) -> tuple[Float[Tensor, "n size size 3"], Float[Tensor, "n size size"], Bool[Tensor, " n"]]:
    """Photos and masks of the wanted size, with white around the subject, and where it was found.

    A photo in which nothing, or everything, was found stays as it is.

    Args:
        images: sRGB colours in 0..1, on white where a photo is transparent.
        masks: 0 where a photo is transparent.
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
    for image, mask, found in zip(images, masks, is_found.tolist(), strict=True):
        kept = mask if found else torch.ones_like(mask)
        white = torch.cat([image * kept[..., None] + 1.0 - kept[..., None], kept[..., None]], -1)
        if found and config.fill is not None:
            white = _framed(white, config.fill)
        framed.append(_shrunk(white, size))
    stacked = torch.stack(framed)
    return stacked[..., :3], stacked[..., 3], is_found


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
