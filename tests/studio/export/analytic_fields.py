"""Fields in closed form, for tests of the export: shape, colour and volume are known exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GRAY = 0.235
"""An albedo whose byte (60) and linear value (0.0451) are easy to tell apart."""


def step(distance: Tensor, *, density: float = 100.0, width: float = 0.01) -> Tensor:
    """Density of a solid with a soft edge: half of it at distance 0."""
    return density * torch.sigmoid(-distance / width)


@dataclass
class Ball:
    """A gray ball."""

    r: float = 0.5
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 1.0

    def density(self, x: Tensor) -> Tensor:
        return step((x - torch.tensor(self.centre)).norm(dim=-1) - self.r)

    def albedo(self, x: Tensor) -> Tensor:
        return torch.full_like(x, GRAY)

    @property
    def volume(self) -> float:
        return 4.0 / 3.0 * math.pi * self.r**3


@dataclass
class DistanceBall:
    """The same as a signed distance field, coloured by position."""

    r: float = 0.4
    radius: float = 1.0

    def sdf(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1) - self.r

    def albedo(self, x: Tensor) -> Tensor:
        return 0.5 + 0.5 * x


@dataclass
class Balls:
    """Several balls ``(centre, radius, colour)``."""

    parts: tuple
    radius: float = 1.0

    def distances(self, x: Tensor) -> Tensor:
        return torch.stack([(x - torch.tensor(c)).norm(dim=-1) - r for c, r, _ in self.parts], -1)

    def density(self, x: Tensor) -> Tensor:
        return step(self.distances(x).amin(-1))

    def albedo(self, x: Tensor) -> Tensor:
        return torch.tensor([part[2] for part in self.parts])[self.distances(x).argmin(-1)]


def robot() -> Balls:
    """Unlike its mirror image: orange nose in front (+x), red arm on its left (+y), head on top."""
    return Balls(
        parts=(
            ((0.0, 0.0, -0.2), 0.32, (0.2, 0.45, 0.85)),
            ((0.0, 0.0, 0.3), 0.22, (0.95, 0.85, 0.4)),
            ((0.24, 0.0, 0.3), 0.08, (0.9, 0.5, 0.1)),
            ((0.0, 0.42, -0.1), 0.14, (0.85, 0.15, 0.15)),
        )
    )


@dataclass
class Glow:
    """Density ``peak exp(-r^2 / 2 s^2)``: a volume without any edge."""

    peak: float = 40.0
    s: float = 0.25
    radius: float = 1.0

    def density(self, x: Tensor) -> Tensor:
        return self.peak * torch.exp(-0.5 * x.square().sum(-1) / self.s**2)

    def albedo(self, x: Tensor) -> Tensor:
        return torch.full_like(x, GRAY)


@dataclass
class Onion:
    """A soft ball, red outside of radius 0.5 and blue inside."""

    radius: float = 1.0

    def density(self, x: Tensor) -> Tensor:
        return step(x.norm(dim=-1) - 0.5, density=60.0, width=0.02)

    def albedo(self, x: Tensor) -> Tensor:
        inside = (x.norm(dim=-1, keepdim=True) < 0.5).float()
        red, blue = torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9])
        return inside * blue + (1.0 - inside) * red
