"""Ray marching and compositing in plain PyTorch: the reference of every other backend.

Samples lie on one lattice per ray, ``t_k = (k + jitter) * step``. An interval
``[t_k, t_k + step]`` becomes a sample when its middle lies in the box, between near and far, and
in an occupied cell.
Compositing is the quadrature of NeRF (arXiv 2003.08934), Eq. 3, over packed samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from renderers.backends.ray_sums import sum_before

__all__ = ["MarchProblem", "Search", "composite", "find_samples", "write_samples"]

TINY_DIRECTION = 1e-12
"""Smaller direction components count as this one, so that the slab test divides by no zero."""
_MAX_LATTICE_POINTS = 1 << 22
"""Lattice points examined at once; bounds the memory of the dense search."""


@dataclass(frozen=True)
class MarchProblem:
    """What a backend needs to know to place samples."""

    rays_o: Float[Tensor, "n 3"]
    rays_d: Float[Tensor, "n 3"]
    """Unit directions."""
    jitter: Float[Tensor, "n"]
    """Shift of each ray's lattice, 0..1 of a step."""
    binary: Bool[Tensor, "r r r"]
    """Occupied cells of the box ``[-radius, radius]^3``."""
    radius: float
    near: float
    far: float


@dataclass(frozen=True)
class Search:
    """The samples that were found, before they are written out."""

    counts: Int[Tensor, "n"]
    """Samples on each ray."""
    found: tuple[Tensor, ...]
    """What the backend keeps for its `write_samples`."""


def find_samples(problem: MarchProblem, step: float) -> Search:
    """Look for the samples of every ray."""
    counts, rays, slots = [], [], []
    for rows in _chunks(problem, step):
        *_, keep = _lattice(problem, step, rows)
        ray, slot = keep.nonzero(as_tuple=True)
        counts.append(keep.sum(dim=1))
        rays.append(ray + rows.start)
        slots.append(slot)
    if not counts:
        none = torch.zeros(0, dtype=torch.long, device=problem.rays_o.device)
        return Search(counts=none, found=(none, none))
    return Search(counts=torch.cat(counts), found=(torch.cat(rays), torch.cat(slots)))


def write_samples(
    problem: MarchProblem, step: float, search: Search
) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m 3"]]:
    """Starts, ray numbers and middles of all samples, ray after ray."""
    ray, slot = search.found
    enter, _ = box_interval(problem, slice(None))
    start = _lattice_starts(enter[ray], problem.jitter[ray], slot, step)
    middle = (start + 0.5 * step)[:, None]
    return start, ray, problem.rays_o[ray] + middle * problem.rays_d[ray]


def composite(
    sigma: Float[Tensor, "m"],
    features: Float[Tensor, "m c"],
    t_starts: Float[Tensor, "m"],
    t_ends: Float[Tensor, "m"],
    ray_indices: Int[Tensor, "m"],
    packed_info: Int[Tensor, "n 2"],
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Composited features, opacity, depth and the samples' weights.

    ``w_k = T_k (1 - exp(-sigma_k dt_k))``, ``T_k = exp(-sum_{j<k} sigma_j dt_j)``.
    """
    n_rays = packed_info.shape[0]
    optical = sigma * (t_ends - t_starts)
    before = sum_before(optical, ray_indices, packed_info)
    transmittance = torch.exp(-before).to(sigma.dtype)
    weights = -torch.expm1(-optical) * transmittance
    middles = 0.5 * (t_starts + t_ends)
    columns = torch.cat([features, middles[:, None], torch.ones_like(middles)[:, None]], dim=1)
    sums = columns.new_zeros(n_rays, columns.shape[1])
    sums = sums.index_add(0, ray_indices, weights[:, None] * columns)
    return sums[:, :-2], sums[:, -1], sums[:, -2], weights


def box_interval(problem: MarchProblem, rows: slice) -> tuple[Tensor, Tensor]:
    """Entry and exit of each ray in the box, cut to near..far; entry >= exit means a miss."""
    o, d = problem.rays_o[rows], problem.rays_d[rows]
    inverse = 1.0 / torch.where(d.abs() < TINY_DIRECTION, TINY_DIRECTION, d)
    a, b = (-problem.radius - o) * inverse, (problem.radius - o) * inverse
    enter = torch.minimum(a, b).amax(dim=1).clamp(min=problem.near)
    leave = torch.maximum(a, b).amin(dim=1).clamp(max=problem.far)
    return enter, leave


def _lattice_starts(enter: Tensor, jitter: Tensor, slot: Tensor, step: float) -> Tensor:
    """Starts of lattice intervals, counted from the one in which the box begins."""
    return (torch.floor(enter / step - jitter) + slot.to(enter.dtype) + jitter) * step


def _lattice(problem: MarchProblem, step: float, rows: slice) -> tuple[Tensor, Tensor]:
    """Middles [n, s] of the lattice intervals of some rays, and which are samples."""
    enter, leave = box_interval(problem, rows)
    slots = torch.arange(_lattice_length(enter, leave, step), device=enter.device)
    start = _lattice_starts(enter[:, None], problem.jitter[rows, None], slots, step)
    middle = start + 0.5 * step
    inside = (middle >= enter[:, None]) & (middle < leave[:, None])
    resolution = problem.binary.shape[0]
    cells_per_unit = resolution / (2.0 * problem.radius)
    # In units of cells, so that only a product and a sum are left for each lattice point.
    origin = (problem.rays_o[rows] + problem.radius) * cells_per_unit
    direction = problem.rays_d[rows] * cells_per_unit
    cell = torch.zeros_like(middle, dtype=torch.long)
    for axis in range(3):
        along = origin[:, axis, None] + middle * direction[:, axis, None]
        cell = cell * resolution + along.nan_to_num(0.0).long().clamp(0, resolution - 1)
    return middle, inside & problem.binary.reshape(-1)[cell]


def _lattice_length(enter: Tensor, leave: Tensor, step: float) -> int:
    longest = float((leave - enter).clamp(min=0.0).max()) if enter.shape[0] else 0.0
    return int(longest / step) + 3


def _chunks(problem: MarchProblem, step: float) -> list[slice]:
    """Row ranges of the rays, small enough for the dense search."""
    n_rays = problem.rays_o.shape[0]
    n_slots = int(2.0 * 3**0.5 * problem.radius / step) + 3
    size = max(_MAX_LATTICE_POINTS // n_slots, 1)
    return [slice(i, min(i + size, n_rays)) for i in range(0, n_rays, size)]
