"""Multiresolution hash encoding in plain PyTorch: the reference of every other backend.

Instant-NGP (Müller et al., arXiv 2201.05989), Eq. 2-4. Any device, float32 and float64, and
differentiable any number of times in both the table and the positions.

Deviation: a level has ``floor(scale + 1/2) + 2`` vertices along an axis, the number that positions
in 0..1 can touch, so that a dense level is exact trilinear interpolation up to its border. The
published code has one less, and its last cell reads the first vertex of the next row.

    layout = GridLayout.from_config(HashGridConfig())
    features = encode(x, table, layout)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.configs import HashGridConfig

__all__ = ["HASH_PRIMES", "GridLayout", "encode", "encode_with_jacobian"]

HASH_PRIMES = (1, 2654435761, 805459861)
"""Eq. 4: one prime per axis; the first is 1 so that neighbours along x stay near in memory."""
_ENTRY_ALIGNMENT = 8


@dataclass(frozen=True)
class GridLayout:
    """Where each level lies in the table; the same for all backends."""

    n_features: int
    """Features per level F."""
    hash_mask: int
    """T - 1, where T is the (power of two) number of entries of a hashed level."""
    scales: tuple[float, ...]
    """Cells per unit length, minus one; exactly representable in float32."""
    resolutions: tuple[int, ...]
    """Vertices along an axis."""
    offsets: tuple[int, ...]
    """First entry of each level, and the total number of entries at the end."""
    hashed: tuple[bool, ...]
    """Whether a level is hashed (True) or addressed densely."""

    @classmethod
    def from_config(cls, config: HashGridConfig) -> GridLayout:
        """Lay out the levels of ``config``.

        Raises:
            ValueError: sizes that make no grid.
        """
        _check_config(config)
        growth = 1.0
        if config.n_levels > 1:
            ratio = config.finest_resolution / config.base_resolution
            growth = math.exp(math.log(ratio) / (config.n_levels - 1))  # Eq. 3
        table_size = 1 << config.log2_hashmap_size
        scales, resolutions, offsets, hashed = [], [], [0], []
        for level in range(config.n_levels):
            scale = float(np.float32(config.base_resolution * growth**level - 1.0))  # Eq. 2
            resolution = math.floor(scale + 0.5) + 2
            dense_size = -(-(resolution**3) // _ENTRY_ALIGNMENT) * _ENTRY_ALIGNMENT
            scales.append(scale)
            resolutions.append(resolution)
            hashed.append(resolution**3 > table_size)
            offsets.append(offsets[-1] + (table_size if hashed[-1] else dense_size))
        return cls(
            n_features=config.n_features,
            hash_mask=table_size - 1,
            scales=tuple(scales),
            resolutions=tuple(resolutions),
            offsets=tuple(offsets),
            hashed=tuple(hashed),
        )

    @property
    def n_levels(self) -> int:
        """Number of levels L."""
        return len(self.scales)

    @property
    def n_entries(self) -> int:
        """Rows of the table."""
        return self.offsets[-1]

    @property
    def n_outputs(self) -> int:
        """Features per position, L * F."""
        return self.n_levels * self.n_features

    def level_mask(self, progress: float, start_level: int) -> Float[Tensor, "lf"]:
        """Factors on the features for coarse-to-fine training.

        The first ``start_level`` levels are always on; the others fade in one after the other,
        linearly, while ``progress`` goes from 0 to 1.
        """
        n_on = start_level + min(max(progress, 0.0), 1.0) * (self.n_levels - start_level)
        levels = torch.arange(self.n_levels, dtype=torch.float32)
        return (n_on - levels).clamp(0.0, 1.0).repeat_interleave(self.n_features)


def encode(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries f"], layout: GridLayout
) -> Float[Tensor, "n lf"]:
    """Features of positions in 0..1, level after level: ``y = sum_c w_c(x) table[i_c(x)]``."""
    if x.shape[0] == 0:
        return _empty(x, table, layout.n_outputs)
    return torch.cat([_encode_level(x, table, layout, i) for i in range(layout.n_levels)], dim=1)


def encode_with_jacobian(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries f"], layout: GridLayout
) -> tuple[Float[Tensor, "n lf"], Float[Tensor, "n 3 lf"]]:
    """Features and their derivatives along the three axes (per unit of ``x``).

    At a cell border, where the encoding has a kink, the derivative is that of the upper cell.
    """
    if x.shape[0] == 0:
        y = _empty(x, table, layout.n_outputs)
        return y, y.unsqueeze(1).expand(0, 3, -1)
    features, slopes = [], []
    for level in range(layout.n_levels):
        index, fraction = corners(x, layout, level)
        corner_values = table[index]  # [n, 8, F]
        lower_upper = torch.stack([1 - fraction, fraction], dim=-1)  # [n, axis, side]
        signs = lower_upper.new_tensor([-1.0, 1.0]).expand_as(lower_upper)
        scale = layout.scales[level]
        features.append(_blend(corner_values, *lower_upper.unbind(1)))
        per_axis = []
        for axis in range(3):
            factors = list(lower_upper.unbind(1))
            factors[axis] = signs[:, axis]
            per_axis.append(scale * _blend(corner_values, *factors))
        slopes.append(torch.stack(per_axis, dim=1))
    return torch.cat(features, dim=1), torch.cat(slopes, dim=2)


def corners(
    x: Float[Tensor, "n 3"], layout: GridLayout, level: int
) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 3"]]:
    """Table rows of the eight corners (x fastest) and the position inside the cell, 0..1."""
    # Separate multiplication and addition, never fused: indices agree bit for bit everywhere.
    position = x * layout.scales[level] + 0.5
    lower = position.detach().floor()
    fraction = position - lower
    cell = lower.long()
    resolution = layout.resolutions[level]
    factors = HASH_PRIMES if layout.hashed[level] else (1, resolution, resolution**2)
    sides = torch.arange(2, device=x.device)
    ax, ay, az = (((cell[:, i, None] + sides) * factors[i]) for i in range(3))  # [n, 2] each
    ax, ay, az = ax[:, None, None, :], ay[:, None, :, None], az[:, :, None, None]
    index = (ax ^ ay ^ az) & layout.hash_mask if layout.hashed[level] else ax + ay + az
    last = layout.offsets[level + 1] - layout.offsets[level] - 1
    # Only a NaN position can leave the level; its features are NaN whatever row is read.
    index = index.reshape(-1, 8).clamp(0, last)
    return index + layout.offsets[level], fraction


def _encode_level(x: Tensor, table: Tensor, layout: GridLayout, level: int) -> Tensor:
    index, fraction = corners(x, layout, level)
    lower_upper = torch.stack([1 - fraction, fraction], dim=-1)
    return _blend(table[index], *lower_upper.unbind(1))


def _blend(
    values: Float[Tensor, "n 8 f"],
    along_x: Float[Tensor, "n 2"],
    along_y: Float[Tensor, "n 2"],
    along_z: Float[Tensor, "n 2"],
) -> Float[Tensor, "n f"]:
    """Sum over the corners of the product of one factor per axis times the corner's value."""
    weights = along_z[:, :, None, None] * along_y[:, None, :, None] * along_x[:, None, None, :]
    return (weights.reshape(-1, 8, 1) * values).sum(dim=1)


def _empty(x: Tensor, table: Tensor, width: int) -> Tensor:
    # Stays in the graph of the table and the positions, so that backward gives zeros.
    return x.new_zeros(0, width) + 0.0 * (table[:0].sum() + x.sum())


def _check_config(config: HashGridConfig) -> None:
    if config.n_levels < 1 or config.n_features < 1:
        raise ValueError(
            f"hash grid: n_levels {config.n_levels} and n_features {config.n_features} "
            "must be at least 1."
        )
    if not 4 <= config.log2_hashmap_size <= 26:
        raise ValueError(
            f"hash grid: log2_hashmap_size {config.log2_hashmap_size} is outside 4..26."
        )
    if not 2 <= config.base_resolution <= config.finest_resolution <= 2**20:
        raise ValueError(
            f"hash grid: base_resolution {config.base_resolution} and finest_resolution "
            f"{config.finest_resolution} must satisfy 2 <= base <= finest <= {2**20}."
        )
