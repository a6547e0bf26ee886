"""How StableVITON varies its pairs (arXiv 2312.01725, section 4.3), maps along with pictures.

Mirror images and colours come to person and garment together; person and garment are scaled and
shifted apart, so that the model finds the garment's parts wherever they are. The mask of the worn
garment moves with the person, which the loss on attention needs (the released code takes it from
before the move). What is painted anew is grey afterwards, because it is made of picture and mask.

    sample = varied(sample, generator, PairAugmentation())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.tryon.augment import recolored
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.stable_viton_configs import PairAugmentation

__all__ = ["moved_apart", "turned", "varied"]

Change = Callable[[Tensor], Tensor]
PERSON_PICTURES, PERSON_MASKS = ("person", "warped"), ("mask", "densepose", "worn_mask")


def varied(
    sample: TryOnSample, generator: torch.Generator, config: PairAugmentation
) -> TryOnSample:
    """A sample in which each row is changed by chance; keypoints and labels are left out."""
    rows = len(sample)

    def chance(share: float) -> Tensor:
        return torch.rand(rows, generator=generator) < share

    def around(middle: float, spread: float, *shape: int) -> Tensor:
        return middle + spread * (2.0 * torch.rand(rows, *shape, generator=generator) - 1.0)

    sample = turned(replace(sample, keypoints=None, parse=None), chance(config.mirrored))
    thetas = []
    for _ in range(2):
        is_moved = chance(config.moved)
        scale = torch.where(is_moved, around(1.0, config.scale), 1.0)
        thetas.append(_affine(scale, around(0.0, config.shift, 2) * is_moved[:, None]))
    sample = moved_apart(sample, *thetas)
    is_recolored = chance(config.recolored)
    bright, contrast = (
        torch.where(is_recolored, around(1.0, config.brightness), 1.0) for _ in range(2)
    )
    turns = torch.where(is_recolored, around(0.0, config.hue), 0.0)
    return recolored(sample, bright, contrast, torch.ones(rows), turns)


def turned(sample: TryOnSample, chosen: Bool[Tensor, " b"]) -> TryOnSample:
    """Chosen rows as mirror images, person, garment and all maps."""

    def flip(pictures: Tensor) -> Tensor:
        rows = chosen.to(pictures.device)[:, None, None, None]
        return torch.where(rows, pictures.flip(2), pictures)

    return _changed(sample, flip, flip, flip)


def moved_apart(
    sample: TryOnSample, person: Float[Tensor, "b 2 3"], garment: Float[Tensor, "b 2 3"]
) -> TryOnSample:
    """People and their maps moved by one affine map, garments by another.

    Edges of pictures go on, masks and body parts end.
    """

    def move(theta: Tensor, mode: str, padding: str, pictures: Tensor) -> Tensor:
        planes = pictures.movedim(-1, 1)
        grid = F.affine_grid(theta.to(planes), list(planes.shape), align_corners=False)
        moved = F.grid_sample(planes, grid, mode=mode, padding_mode=padding, align_corners=False)
        return moved.movedim(1, -1)

    def picture(values: Tensor) -> Tensor:
        return move(person, "bilinear", "border", values)

    def mask(values: Tensor) -> Tensor:
        return move(person, "nearest", "zeros", values)

    def product(values: Tensor) -> Tensor:
        return move(garment, "bilinear", "border", values)

    return _changed(sample, picture, mask, product)


def _affine(scale: Float[Tensor, " b"], shift: Float[Tensor, "b 2"]) -> Float[Tensor, "b 2 3"]:
    """The place that each pixel of a larger and shifted picture comes from."""
    theta = torch.zeros(len(scale), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / scale
    theta[:, :, 2] = -2.0 * shift / scale[:, None]
    return theta


def _changed(sample: TryOnSample, picture: Change, mask: Change, product: Change) -> TryOnSample:
    """Each part changed by the function for its kind; absent ones stay absent."""

    def apply(change: Change, values: Tensor | None) -> Tensor | None:
        return None if values is None else change(values)

    garments = tuple(
        replace(one, images=product(one.images), masks=apply(product, one.masks))
        for one in sample.garments
    )
    parts = {name: apply(picture, getattr(sample, name)) for name in PERSON_PICTURES}
    parts |= {name: apply(mask, getattr(sample, name)) for name in PERSON_MASKS}
    return replace(sample, garments=garments, **parts)
