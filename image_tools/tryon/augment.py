"""Random changes of try-on samples, so that a model does not learn where and how people stand.

    sample = augmented(sample, generator, AugmentationConfig())

Mirror images and colours come to person and garment together, scale and shift to the person alone.
Colours turn around the grey axis, which moves hues. Where the picture ends after a shift its edge
goes on; masks and body parts end. What IDM-VTON does not read is left out of the result.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.tryon.idm_vton_configs import AugmentationConfig
from image_tools.tryon.samples import TryOnSample

__all__ = ["augmented", "mirrored", "moved", "recolored"]


def augmented(
    sample: TryOnSample, generator: torch.Generator, config: AugmentationConfig
) -> TryOnSample:
    """A sample in which each row is changed by chance."""
    rows = len(sample)

    def chance(share: float) -> Tensor:
        return torch.rand(rows, generator=generator) < share

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, generator=generator)

    flips = chance(config.mirrored)
    sample = mirrored(sample, flips)
    is_recolored = chance(config.recolored)
    factors = [
        torch.where(is_recolored, between(1.0 - spread, 1.0 + spread), torch.ones(rows))
        for spread in (config.brightness, config.contrast, config.saturation)
    ]
    turns = torch.where(is_recolored, between(-config.hue, config.hue), torch.zeros(rows))
    sample = recolored(sample, *factors, turns)
    scale = torch.where(chance(config.scaled), between(*config.scale), torch.ones(rows))
    is_shifted = chance(config.shifted)
    shift = torch.stack([between(-config.shift, config.shift) for _ in range(2)], dim=1)
    return moved(sample, scale, shift * is_shifted[:, None])


def mirrored(sample: TryOnSample, chosen: Tensor) -> TryOnSample:
    """Chosen rows as mirror images, garments too; body parts keep their colours."""

    def flip(pictures: Tensor | None) -> Tensor | None:
        if pictures is None:
            return None
        return torch.where(
            chosen.to(pictures.device)[:, None, None, None], pictures.flip(2), pictures
        )

    garments = tuple(
        replace(one, images=flip(one.images), masks=flip(one.masks)) for one in sample.garments
    )
    names = ("person", "mask", "densepose", "worn_mask")
    pictures = {name: flip(getattr(sample, name)) for name in names}
    return _only_pictures(replace(sample, garments=garments, **pictures))


def recolored(
    sample: TryOnSample,
    brightness: Float[Tensor, " b"],
    contrast: Float[Tensor, " b"],
    saturation: Float[Tensor, " b"],
    turns: Float[Tensor, " b"],
) -> TryOnSample:
    """Other colours of people and garments; 1, 1, 1 and 0 change nothing."""

    def change(pictures: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h w 3"]:
        bright, strong, vivid = (
            factor.to(pictures)[:, None, None, None]
            for factor in (brightness, contrast, saturation)
        )
        pictures = pictures * bright
        middle = pictures.mean(dim=(1, 2, 3), keepdim=True)
        pictures = middle + strong * (pictures - middle)
        grey = pictures.mean(dim=3, keepdim=True)
        turned = torch.einsum("bij,bhwj->bhwi", _hue_turns(turns.to(pictures)), pictures - grey)
        return (grey + vivid * turned).clamp(0.0, 1.0)

    garments = tuple(replace(one, images=change(one.images)) for one in sample.garments)
    return replace(sample, person=change(sample.person), garments=garments)


def moved(
    sample: TryOnSample, scale: Float[Tensor, " b"], shift: Float[Tensor, "b 2"]
) -> TryOnSample:
    """People larger or elsewhere; 1 and 0 change nothing.

    Args:
        sample: whose garments stay.
        scale: above 1 for larger.
        shift: to the right and down, shares of the picture.
    """
    if bool((scale == 1.0).all()) and not bool(shift.any()):
        return _only_pictures(sample)
    theta = torch.zeros(len(sample), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / scale
    theta[:, :, 2] = -2.0 * shift / scale[:, None]
    theta = theta.to(sample.person)

    def move(pictures: Tensor, mode: str, padding: str) -> Tensor:
        planes = pictures.movedim(-1, 1)
        grid = F.affine_grid(theta, list(planes.shape), align_corners=False)
        return F.grid_sample(
            planes, grid, mode=mode, padding_mode=padding, align_corners=False
        ).movedim(1, -1)

    densepose, worn = sample.densepose, sample.worn_mask
    return _only_pictures(
        replace(
            sample,
            person=move(sample.person, "bilinear", "border"),
            mask=move(sample.mask, "nearest", "zeros"),
            densepose=None if densepose is None else move(densepose, "nearest", "zeros"),
            worn_mask=None if worn is None else move(worn, "nearest", "zeros"),
        )
    )


def _only_pictures(sample: TryOnSample) -> TryOnSample:
    """Without what was not moved along."""
    return replace(sample, keypoints=None, parse=None, warped=None)


def _hue_turns(turns: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """Rotations of colours around the grey axis (Rodrigues)."""
    angle = (2.0 * math.pi * turns)[:, None, None]
    side = 1.0 / math.sqrt(3.0)
    axis = turns.new_full((3, 3), side * side)
    cross = side * turns.new_tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return angle.cos() * torch.eye(3).to(turns) + angle.sin() * cross + (1 - angle.cos()) * axis
