"""What hash-grid fields share: encoding, heads, normals and coarse-to-fine levels.

A field is a scalar *potential* (an initial shape plus a learned part) and an albedo. Subclasses say
what the initial shape is and how the potential becomes density.

Normals without double backward: the grid returns features y and their Jacobian J, the network the
gradient v of the potential with respect to y, and ``J v`` is the spatial gradient, trainable by an
ordinary backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from renderers.configs import (
    FiniteDifferenceNormalsConfig,
    HashSDFConfig,
    HashVolumeConfig,
    PredictedNormalsConfig,
)
from renderers.fields.mlp import ReluMLP, in_row_chunks
from renderers.fields.samples import FieldSamples
from renderers.hashgrid import build_hash_grid

__all__ = ["HashField"]

# Keeps the direction of a vanishing gradient finite; far below any gradient that matters.
NORMALIZE_EPS = 1e-12


class HashField(nn.Module, ABC):
    """A potential and an albedo on ``[-radius, radius]^3``.

    Args:
        config: sizes and choices.
        generator: source of all initial values.
    """

    outward_sign: float
    """Sign of the potential's change when moving out of the object."""

    level_mask: Tensor

    def __init__(
        self, config: HashVolumeConfig | HashSDFConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.radius = config.radius
        self.grid = build_hash_grid(config.grid, generator=generator)
        hidden = (config.hidden_width,) * config.hidden_layers
        outputs = {"separate": 1, "joint": 4}[config.heads]
        self.potential_head = ReluMLP((self.grid.n_outputs, *hidden, outputs), generator=generator)
        self.albedo_head = None
        if config.heads == "separate":
            self.albedo_head = ReluMLP((self.grid.n_outputs, *hidden, 3), generator=generator)
        self.normal_head = None
        if isinstance(config.normals, PredictedNormalsConfig):
            self.normal_head = ReluMLP((self.grid.n_outputs, *hidden, 3), generator=generator)
        # A buffer, so that a checkpoint made while levels are closed renders as it trained.
        self.register_buffer("level_mask", torch.ones(self.grid.n_outputs))

    @abstractmethod
    def initial_potential(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """The potential of the untrained field."""

    @abstractmethod
    def initial_gradient(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Spatial gradient of :meth:`initial_potential`."""

    @abstractmethod
    def density_of(self, potential: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Volume density for a potential."""

    def set_fraction(self, fraction: float) -> None:
        """Open the grid's levels for a fraction (0 to 1) of the stage."""
        bands = self.config.bands
        if bands is None:
            return
        span = max(bands.end_fraction - bands.start_fraction, 1e-9)
        progress = (fraction - bands.start_fraction) / span
        progress = min(max(progress, 0.0), 1.0)
        mask = self.grid.level_mask(progress, start_level=bands.start_levels)
        self.level_mask.copy_(mask)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the learning rate they usually get: ``grid`` and ``network``."""
        grid = list(self.grid.parameters())
        known = {id(parameter) for parameter in grid}
        return {"grid": grid, "network": [p for p in self.parameters() if id(p) not in known]}

    def potential(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """The scalar field whose level sets are the surfaces."""
        (raw,) = in_row_chunks(lambda y: (self.potential_head(y)[:, :1],), self._encode(x))
        return raw[:, 0] + self.initial_potential(x)

    def density(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Volume density, per world unit."""
        return self.density_of(self.potential(x))

    def albedo(self, x: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Base colour, 0..1."""
        (albedo,) = in_row_chunks(lambda y: (self._albedo(y, None),), self._encode(x))
        return albedo

    def query(self, x: Float[Tensor, "n 3"]) -> FieldSamples:
        """Density and albedo."""
        return self._samples(x, *in_row_chunks(self._heads, self._encode(x)))

    def query_with_normals(self, x: Float[Tensor, "n 3"]) -> FieldSamples:
        """Density, albedo and unit normals that point out of the object."""
        if isinstance(self.config.normals, PredictedNormalsConfig):
            return self._query_predicted(x)
        if isinstance(self.config.normals, FiniteDifferenceNormalsConfig):
            return self._with_gradient(self.query(x), self._central_difference(x))
        return self._query_analytic(x)

    def _query_analytic(self, x: Tensor) -> FieldSamples:
        features, jacobian = self.grid.with_jacobian(self._to_unit_cube(x))
        raw, albedo, gradient = in_row_chunks(self._heads_with_gradient, features, jacobian)
        return self._with_gradient(
            self._samples(x, raw, albedo), gradient + self.initial_gradient(x)
        )

    def _query_predicted(self, x: Tensor) -> FieldSamples:
        features = self._encode(x)
        samples = self._samples(x, *in_row_chunks(self._heads, features))
        (offset,) = in_row_chunks(lambda y: (self.normal_head(y),), features)
        # Starts from the initial shape's normals, since a fresh head outputs nearly zero.
        start = F.normalize(self.outward_sign * self.initial_gradient(x), dim=-1)
        return replace(samples, normal=F.normalize(start + offset, dim=-1))

    def _samples(self, x: Tensor, raw: Tensor, albedo: Tensor) -> FieldSamples:
        return FieldSamples(self.density_of(raw[:, 0] + self.initial_potential(x)), albedo)

    def _with_gradient(self, samples: FieldSamples, gradient: Tensor) -> FieldSamples:
        norm = (gradient.square().sum(-1, keepdim=True) + NORMALIZE_EPS).sqrt()
        normal = self.outward_sign * gradient / norm
        return replace(samples, normal=normal, gradient=self._reported(gradient))

    def _reported(self, gradient: Tensor) -> Tensor | None:
        """The gradient as FieldSamples reports it; only distances have a meaningful one."""
        return None

    def _central_difference(self, x: Tensor) -> Tensor:
        """Gradient of the potential from two taps along each axis."""
        epsilon = self.config.normals.epsilon
        offsets = epsilon * torch.eye(3, dtype=x.dtype, device=x.device)
        taps = torch.cat([x[None] + offsets[:, None], x[None] - offsets[:, None]])  # [6, n, 3]
        values = self.potential(taps.reshape(-1, 3)).view(2, 3, len(x))
        return (values[0] - values[1]).T / (2.0 * epsilon)

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Learned potential [n, 1] and albedo of encoded points."""
        raw = self.potential_head(features)
        return raw[:, :1], self._albedo(features, raw)

    def _heads_with_gradient(
        self, features: Tensor, jacobian: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the learned potential's gradient in world coordinates."""
        features = self._masked(features)
        raw, by_feature = self.potential_head.with_input_gradient(features)
        by_feature = self._masked(by_feature) / (2.0 * self.radius)
        # A product and a sum: faster than batched 3 x 16 matrix products.
        gradient = (jacobian * by_feature[:, None, :]).sum(dim=-1)
        return raw[:, :1], self._albedo(features, raw), gradient

    def _albedo(self, features: Tensor, raw: Tensor | None) -> Tensor:
        if self.albedo_head is not None:
            return torch.sigmoid(self.albedo_head(features))
        joint = self.potential_head(features) if raw is None else raw
        return torch.sigmoid(joint[:, 1:])

    def _encode(self, x: Tensor) -> Tensor:
        return self._masked(self.grid(self._to_unit_cube(x)))

    def _masked(self, features: Tensor) -> Tensor:
        """Silence the levels that are still closed."""
        return features if self.config.bands is None else features * self.level_mask

    def _to_unit_cube(self, x: Tensor) -> Tensor:
        return (x / self.radius + 1.0) * 0.5
