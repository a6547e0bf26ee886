"""The usual PyTorch code for volume rendering, which `bench_volume` measures ours against.

Written as public code bases write it: a hash grid that loops over levels and corners with gathers,
a ray marcher that tests every lattice point of every ray, compositing by a running sum, and a
renderer without an occupancy grid that evaluates all samples of all rays.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from renderers.backends.torch_hashgrid import HASH_PRIMES, GridLayout

__all__ = [
    "composite_dense",
    "composite_packed",
    "dense_samples",
    "encode_naive",
    "gather_rows",
    "march_lattice",
]


def encode_naive(x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """Hash-grid features, one gather for each level and corner."""
    features = []
    for level in range(layout.n_levels):
        position = x * layout.scales[level] + 0.5
        lower = torch.floor(position)
        fraction, cell = position - lower, lower.long()
        total = torch.zeros(x.shape[0], layout.n_features, device=x.device)
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2], device=x.device)
            vertex = cell + bits
            weight = torch.where(bits.bool(), fraction, 1 - fraction).prod(dim=1)
            if layout.hashed[level]:
                _, p, q = HASH_PRIMES
                index = vertex[:, 0] ^ (vertex[:, 1] * p) ^ (vertex[:, 2] * q)
                index = index & layout.hash_mask
            else:
                side = layout.resolutions[level]
                index = vertex[:, 0] + side * (vertex[:, 1] + side * vertex[:, 2])
            total = total + table[index + layout.offsets[level]] * weight[:, None]
        features.append(total)
    return torch.cat(features, dim=1)


def dense_samples(
    rays_o: Tensor, rays_d: Tensor, radius: float, step: float, jitter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lattice starts [n, s], middles' positions [n, s, 3] and whether they lie in the box."""
    inverse = 1 / torch.where(rays_d.abs() < 1e-12, 1e-12, rays_d)
    a, b = (-radius - rays_o) * inverse, (radius - rays_o) * inverse
    enter = torch.minimum(a, b).amax(dim=1).clamp(min=0)
    leave = torch.maximum(a, b).amin(dim=1)
    slots = torch.arange(int(2 * 3**0.5 * radius / step) + 2, device=rays_o.device)
    t = (torch.ceil(enter / step - jitter)[:, None] + slots + jitter[:, None]) * step
    middle = t + 0.5 * step
    inside = (middle >= enter[:, None]) & (middle < leave[:, None])
    return t, rays_o[:, None] + middle[..., None] * rays_d[:, None], inside


def march_lattice(
    rays_o: Tensor, rays_d: Tensor, binary: Tensor, radius: float, step: float, jitter: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Starts, ray numbers, packed info and positions, by testing every lattice point at once."""
    t, position, inside = dense_samples(rays_o, rays_d, radius, step, jitter)
    side = binary.shape[0]
    cell = ((position + radius) * (side / (2 * radius))).long().clamp(0, side - 1)
    flat = (cell[..., 0] * side + cell[..., 1]) * side + cell[..., 2]
    inside = inside & binary.reshape(-1)[flat]
    ray, slot = inside.nonzero(as_tuple=True)
    counts = inside.sum(dim=1)
    packed_info = torch.stack([torch.cumsum(counts, 0) - counts, counts], dim=1)
    return t[ray, slot], ray, packed_info, position[ray, slot]


def composite_packed(
    sigma: Tensor, features: Tensor, t_starts: Tensor, step: float, ray: Tensor, packed_info: Tensor
) -> Tensor:
    """Features, depth and opacity [n, c + 2] of packed samples."""
    optical = sigma * step
    total = torch.cumsum(optical.double(), dim=0)
    base = torch.cat([total.new_zeros(1), total])[packed_info[:, 0]]
    weights = torch.exp(optical + (base[ray] - total)).float() * (1 - torch.exp(-optical))
    columns = [features, (t_starts + 0.5 * step)[:, None], torch.ones_like(sigma)[:, None]]
    values = weights[:, None] * torch.cat(columns, dim=1)
    return values.new_zeros(packed_info.shape[0], values.shape[1]).index_add(0, ray, values)


def composite_dense(sigma: Tensor, features: Tensor, t: Tensor, step: float) -> Tensor:
    """Features, depth and opacity [n, c + 2] of samples [n, s], absent ones with density 0."""
    optical = sigma * step
    weights = torch.exp(optical - torch.cumsum(optical, dim=1)) * (1 - torch.exp(-optical))
    columns = [features, (t + 0.5 * step)[..., None], torch.ones_like(t)[..., None]]
    return (weights[..., None] * torch.cat(columns, dim=-1)).sum(dim=1)


@njit(parallel=True, fastmath=True, error_model="numpy")
def gather_rows(table: np.ndarray, index: np.ndarray, out: np.ndarray) -> None:
    """Read rows of two floats at random: the least work that a hash-grid lookup can be.

    Args:
        table: [rows, 2].
        index: rows to read, int32.
        out: [blocks of 4096 reads], receives sums so that no read can be left out.
    """
    block = 4096
    for task in prange((index.shape[0] + block - 1) // block):
        a, b = np.float32(0.0), np.float32(0.0)
        for i in range(task * block, min(index.shape[0], (task + 1) * block)):
            a += table[index[i], 0]
            b += table[index[i], 1]
        out[task] = a + b
