"""Hash fields whose density or distance is a closed form; their colours are the network's."""

from __future__ import annotations

import torch
from torch import Tensor

from renderers.configs import HashGridConfig, HashSDFConfig, HashVolumeConfig
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.hash_volume import HashVolumeField

SMALL_GRID = HashGridConfig(n_levels=4, log2_hashmap_size=12, finest_resolution=64)
DENSITY = 100.0


class Solid(HashVolumeField):
    """Density ``DENSITY sigmoid(-distance / width)`` of a shape, a step for width 0."""

    def __init__(self, *, width: float = 0.0, density: float = DENSITY) -> None:
        super().__init__(HashVolumeConfig(grid=SMALL_GRID), torch.Generator().manual_seed(0))
        self.width = width
        self.peak = density
        # Strong, so that colours vary over the object.
        torch.nn.init.normal_(self.grid.table, std=4.0, generator=torch.Generator().manual_seed(1))

    def distance(self, x: Tensor) -> Tensor:
        """Signed distance, or another function with the same zero set and slope there."""
        raise NotImplementedError

    def density(self, x: Tensor) -> Tensor:
        if self.width == 0.0:
            return self.peak * (self.distance(x) < 0).float()
        return self.peak * torch.sigmoid(-self.distance(x) / self.width)


class Ball(Solid):
    """A ball."""

    def __init__(self, *, r: float = 0.5, centre: tuple = (0.0, 0.0, 0.0), **options) -> None:
        super().__init__(**options)
        self.r, self.centre = r, torch.tensor(centre)

    def distance(self, x: Tensor) -> Tensor:
        return (x - self.centre).norm(dim=-1) - self.r


class Box(Solid):
    """A box with three different sides."""

    half = torch.tensor([0.3, 0.45, 0.2])

    def distance(self, x: Tensor) -> Tensor:
        beyond = x.abs() - self.half
        return beyond.clamp(min=0).norm(dim=-1) + beyond.amax(-1).clamp(max=0)


class Torus(Solid):
    """A ring around the z axis."""

    ring, tube = 0.5, 0.18

    def distance(self, x: Tensor) -> Tensor:
        return ((x[:, :2].norm(dim=1) - self.ring).square() + x[:, 2].square()).sqrt() - self.tube


class Shapes(Solid):
    """The sum of several solids, one of which may be hollow."""

    def __init__(self, *parts: Solid) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)

    def density(self, x: Tensor) -> Tensor:
        return sum(part.density(x) for part in self.parts)


def sdf_ball(r: float = 0.5) -> HashSDFField:
    """An untrained distance field, which is a sphere."""
    config = HashSDFConfig(grid=SMALL_GRID, semi_axes=(r, r, r))
    return HashSDFField(config, torch.Generator().manual_seed(0))
