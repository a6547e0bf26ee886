"""Signed distance and albedo on a hash grid, starting from a sphere or an ellipsoid.

The distance becomes density by VolSDF (Yariv et al., arXiv 2106.12052), Eq. 2 and 3 with alpha =
1 / beta, and a beta that is learned, so the same volume renderer serves densities and distances.
The distance is negative inside.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from renderers.configs import HashSDFConfig
from renderers.fields.hash_field import HashField

__all__ = ["HashSDFField"]

# Distance from the origin below which the direction of the gradient is undefined.
MIN_RADIUS = 1e-9


class HashSDFField(HashField):
    """Signed distance ``network(x) + ellipsoid(x)``, VolSDF density and albedo."""

    outward_sign = 1.0

    def __init__(self, config: HashSDFConfig, generator: torch.Generator) -> None:
        super().__init__(config, generator)
        start = max(config.initial_beta - config.minimum_beta, 1e-6)
        self.log_beta = nn.Parameter(torch.tensor(math.log(start)))
        self.register_buffer("semi_axes", torch.tensor(config.semi_axes), persistent=False)

    @property
    def beta(self) -> Float[Tensor, ""]:
        """Width of the density transition across the surface, world units."""
        return self.config.minimum_beta + self.log_beta.exp()

    def sdf(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Signed distance, negative inside."""
        return self.potential(x)

    def density_of(self, potential: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """VolSDF Eq. 2 and 3: the Laplace distribution function of ``-sdf``, divided by beta."""
        tail = 0.5 * torch.exp(-potential.abs() / self.beta)
        return torch.where(potential < 0, 1.0 - tail, tail) / self.beta

    def initial_potential(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Distance to the initial sphere; to an ellipsoid a lower bound, exact in sign."""
        return (self._scaled(x).norm(dim=-1) - 1.0) * self.semi_axes.min()

    def initial_gradient(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Spatial gradient of the initial distance; zero at the origin, where it has none."""
        scaled = self._scaled(x)
        length = scaled.norm(dim=-1, keepdim=True).clamp(min=MIN_RADIUS)
        return self.semi_axes.min() * scaled / (length * self.semi_axes)

    def _scaled(self, x: Tensor) -> Tensor:
        return x / self.semi_axes

    def _reported(self, gradient: Tensor) -> Tensor:
        return gradient
