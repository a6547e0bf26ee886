"""A subject's photos on plain grounds: cut out, and framed as a prior's own images are.

A photo's own transparency says where its subject is; where there is none, what all photos have in
common does (:mod:`image_tools.vision.cutout`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.vision.cutout import cut_out
from image_tools.vision.cutout_configs import CutoutConfig

__all__ = ["PlainPhotos", "far_color", "on_plain"]

# A cut-out that is less or more of the photo than this has found nothing, or everything.
SOUND_SHARES = (0.01, 0.9)
COLORS_DRAWN = 6
COLORS_SEEN = 400
"""Pixels of a subject that stand for all."""


@dataclass(frozen=True)
class PlainPhotos:
    """Photos whose surroundings are plain."""

    images: Float[Tensor, "n size size 3"]
    """sRGB colours in 0..1."""
    masks: Float[Tensor, "n size size"]
    """1 on the subject."""
    grounds: Float[Tensor, "n 3"]
    """Colour around the subject; the border's where it was not found."""
    is_found: Bool[Tensor, " n"]
    """Whether the subject was told from its surroundings; else the photo is as it was."""


def on_plain(
    images: Float[Tensor, "n h w 3"],
    masks: Float[Tensor, "n h w"],
    config: CutoutConfig,
    *,
    size: int,
) -> PlainPhotos:
    """Put photos on plain grounds, in the wanted size.

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
    framed, grounds = [], []
    rng = np.random.default_rng(config.seed)
    for image, mask, found in zip(images, masks, is_found.tolist(), strict=True):
        kept = (mask if found else torch.ones_like(mask))[..., None]
        ground = image.new_ones(3) if config.ground == "white" else far_color(image, mask, rng)
        plain = torch.cat([image * kept + ground * (1.0 - kept), kept], -1)
        if found and config.fill is not None:
            plain = _framed(plain, config.fill, ground)
        framed.append(_shrunk(plain, size))
        grounds.append(ground if found else _border_color(image))
    stacked = torch.stack(framed)
    return PlainPhotos(stacked[..., :3], stacked[..., 3], torch.stack(grounds), is_found)


def far_color(
    image: Float[Tensor, "h w 3"], mask: Float[Tensor, "h w"], rng: np.random.Generator
) -> Float[Tensor, "3"]:
    """A random colour, of several the one that is farthest from the subject's own."""
    own = image[mask > 0.5]
    own = own[:: max(1, len(own) // COLORS_SEEN)]
    drawn = torch.from_numpy(rng.uniform(0.1, 1.0, (COLORS_DRAWN, 3))).to(image)
    if len(own) == 0:
        return drawn[0]
    nearest = torch.cdist(drawn, own).quantile(0.02, dim=1)
    return drawn[int(nearest.argmax())]


def _border_color(image: Float[Tensor, "h w 3"]) -> Float[Tensor, "3"]:
    """The median colour along an image's border."""
    border = (image[0], image[-1], image[1:-1, 0], image[1:-1, -1])
    return torch.cat(border).median(0).values


def _framed(
    image: Float[Tensor, "h w 4"], fill: float, ground: Float[Tensor, "3"]
) -> Float[Tensor, "s s 4"]:
    """The square in whose middle the subject takes the share ``fill``."""
    rows, columns = (image[..., 3] > 0.5).nonzero(as_tuple=True)
    if len(rows) == 0:
        return image
    low = torch.stack([rows.min(), columns.min()])
    high = torch.stack([rows.max(), columns.max()]) + 1
    side = max(1, round(float((high - low).max()) / fill))
    top, left = ((low + high - side) // 2).tolist()
    height, width = image.shape[:2]
    wide = image.new_zeros(height + 2 * side, width + 2 * side, 4)
    wide[..., :3] = ground
    wide[side : side + height, side : side + width] = image
    return wide[top + side : top + 2 * side, left + side : left + 2 * side]


def _shrunk(image: Float[Tensor, "h w c"], size: int) -> Float[Tensor, "size size c"]:
    """The image in the wanted size."""
    if image.shape[:2] == (size, size):
        return image
    rows = image.movedim(-1, 0)[None]
    small = F.interpolate(rows, (size, size), mode="bicubic", antialias=True)
    return small[0].movedim(0, -1).clamp(0.0, 1.0)
