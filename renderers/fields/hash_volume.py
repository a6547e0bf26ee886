"""Density and albedo on a hash grid, starting from a blob of density.

DreamFusion (arXiv 2209.14988, appendix A.2) and Magic3D (arXiv 2211.10440, section 4.1) add the
blob to the pre-activation; the density is its softplus. A start in the middle keeps early gradients
on one object and lets the first occupancy update already skip most of space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.box_configs import BoxesBlobConfig
from renderers.configs import (
    DreamFusionBlobConfig,
    HashVolumeConfig,
    Magic3DBlobConfig,
)
from renderers.fields.hash_field import HashField

__all__ = ["HashVolumeField"]

# Radius below which the direction from the origin is undefined.
MIN_RADIUS = 1e-9


class HashVolumeField(HashField):
    """Density ``softplus(network(x) + blob(x))`` and albedo."""

    outward_sign = -1.0

    def __init__(self, config: HashVolumeConfig, generator: torch.Generator) -> None:
        super().__init__(config, generator)
        self.blob = config.blob

    def density_of(self, potential: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Softplus of the pre-activation."""
        return F.softplus(potential)

    def initial_potential(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """The blob's pre-activation density."""
        blob = self.blob
        if isinstance(blob, Magic3DBlobConfig):
            return blob.scale * (1.0 - x.norm(dim=-1) / blob.std)
        if isinstance(blob, DreamFusionBlobConfig):
            return blob.floor + (blob.scale - blob.floor) * self._bump(x)
        if isinstance(blob, BoxesBlobConfig):
            radius = _box_radii(blob, x)[0].amin(dim=-1)
            outside = _way_out(blob, x).norm(dim=-1)
            return (blob.scale * (1.0 - radius)).clamp(min=blob.floor) - blob.wall * outside
        return x.new_full((len(x),), blob.bias)

    def initial_gradient(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Spatial gradient of the blob; zero at the origin, where it has none."""
        blob = self.blob
        if isinstance(blob, Magic3DBlobConfig):
            return x * (-blob.scale / blob.std) / x.norm(dim=-1, keepdim=True).clamp(min=MIN_RADIUS)
        if isinstance(blob, DreamFusionBlobConfig):
            slope = -(blob.scale - blob.floor) / blob.std**2
            return slope * self._bump(x)[:, None] * x
        if isinstance(blob, BoxesBlobConfig):
            return _boxes_gradient(blob, x)
        return torch.zeros_like(x)

    def _bump(self, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * x.square().sum(-1) / self.blob.std**2)


def _box_radii(blob: BoxesBlobConfig, x: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from the middle of each box, [n, k], 1 on the ellipsoid that fills it; and the
    positions [n, k, 3] in units of half its edges."""
    center = x.new_tensor([box.center for box in blob.boxes])
    half = 0.5 * x.new_tensor([box.size for box in blob.boxes])
    inside = (x[:, None] - center) / half
    return inside.norm(dim=-1), inside / half


def _way_out(blob: BoxesBlobConfig, x: Tensor) -> Float[Tensor, "n 3"]:
    """From the nearest point of the nearest box to ``x``; zero inside of a box."""
    center = x.new_tensor([box.center for box in blob.boxes])
    half = 0.5 * x.new_tensor([box.size for box in blob.boxes])
    offset = x[:, None] - center
    ways = offset - offset.clamp(-half, half)
    nearest = ways.norm(dim=-1).argmin(dim=-1)
    return ways.take_along_dim(nearest[:, None, None], dim=1)[:, 0]


def _boxes_gradient(blob: BoxesBlobConfig, x: Tensor) -> Tensor:
    """Spatial gradient of the density's start in boxes; zero where it is at its floor."""
    radii, slopes = _box_radii(blob, x)
    radius, nearest = radii.min(dim=-1, keepdim=True)
    slope = slopes.take_along_dim(nearest[..., None], dim=1)[:, 0]
    rises = blob.scale * (1.0 - radius) > blob.floor
    hill = rises * (-blob.scale) * slope / radius.clamp(min=MIN_RADIUS)
    way = _way_out(blob, x)
    return hill - blob.wall * way / way.norm(dim=-1, keepdim=True).clamp(min=MIN_RADIUS)
