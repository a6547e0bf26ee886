"""Packed samples along rays, and their compositing into pixels, on any backend.

Rays are marched through an `OccupancyGrid` with a fixed step; only occupied intervals become
samples. The samples of all rays lie one after another ("packed"), ray by ray; ``packed_info`` holds
each ray's first sample and count. Weights follow NeRF (arXiv 2003.08934), Eq. 3.

    samples = march_rays(rays_o, rays_d, grid, step_size=0.03)
    pixels = composite(field.density(samples.positions), colours, samples)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from renderers.backends import resolve
from renderers.backends.torch_march import MarchProblem, Search
from renderers.errors import check_shape
from renderers.occupancy import OccupancyGrid

__all__ = [
    "Composited",
    "RaySamples",
    "accumulate",
    "composite",
    "march_rays",
    "select_samples",
]

COARSEST_STEPS_ACROSS = 4
"""The sample cap never makes steps longer than this fraction of the box's edge."""
MIN_COARSENING = 1.05
"""Smallest growth of the step per round while fitting the sample cap, so that it ends."""


@dataclass(frozen=True)
class RaySamples:
    """Samples of ``n`` rays, packed ray after ray."""

    t_starts: Float[Tensor, "m"]
    """Distance along the ray where the sample's interval begins."""
    t_ends: Float[Tensor, "m"]
    """Distance where it ends."""
    ray_indices: Int[Tensor, "m"]
    """The ray of each sample, ascending."""
    packed_info: Int[Tensor, "n 2"]
    """First sample and number of samples of each ray."""
    positions: Float[Tensor, "m 3"]
    """World position of the interval's middle."""
    step_size: float
    """Step that was used: the requested one, or a longer one under a sample cap."""

    def __len__(self) -> int:
        return self.t_starts.shape[0]

    @property
    def n_rays(self) -> int:
        """Number of rays, those without samples included."""
        return self.packed_info.shape[0]

    @property
    def middles(self) -> Float[Tensor, "m"]:
        """Distance along the ray of the interval's middle."""
        return 0.5 * (self.t_starts + self.t_ends)


@dataclass(frozen=True)
class Composited:
    """Sums over the samples of each ray."""

    values: Float[Tensor, "n c"]
    """Weighted sum of the features; not divided by the opacity."""
    opacity: Float[Tensor, "n"]
    """Sum of the weights, 0..1."""
    depth: Float[Tensor, "n"]
    """Weighted sum of the distances; not divided by the opacity."""
    weights: Float[Tensor, "m"]
    """Contribution of each sample to its ray."""


@torch.no_grad()
def march_rays(
    rays_o: Float[Tensor, "n 3"],
    rays_d: Float[Tensor, "n 3"],
    grid: OccupancyGrid,
    *,
    step_size: float,
    near: float = 0.0,
    far: float = math.inf,
    within: Float[Tensor, "n 2 3"] | None = None,
    jitter: Float[Tensor, "n"] | None = None,
    max_samples: int | None = None,
    backend: str | None = None,
) -> RaySamples:
    """Place samples in the occupied part of the box.

    Args:
        rays_o: origins, world.
        rays_d: unit directions.
        grid: occupied cells and the box's radius.
        step_size: length of an interval, world units.
        near: smallest distance of an interval's middle.
        far: largest distance of an interval's middle.
        within: low and high corner of a box for each ray, outside of which it has no samples.
        jitter: shift of each ray's samples in 0..1 steps; None is 0 for all rays.
        max_samples: above this many samples the step of all rays is lengthened until they fit (at
            most to a quarter of the box's edge), so that the picture stays whole.
        backend: a kernel backend by name, or ``"nerfacc"``; None chooses.

    Raises:
        ShapeError: rays that are not [n, 3].
        ValueError: a step that is not positive, rays that are NaN or infinite.
        BackendMissing: ``backend`` is unknown or cannot serve this device.
    """
    check_shape("rays_o", rays_o, "n 3")
    check_shape("rays_d", rays_d, f"{rays_o.shape[0]} 3")
    _require_finite(rays_o, rays_d)
    if not step_size > 0.0:
        raise ValueError(f"step_size {step_size} must be positive.")
    if jitter is None:
        jitter = rays_o.new_zeros(rays_o.shape[0])
    check_shape("jitter", jitter, f"{rays_o.shape[0]}")
    if within is not None:
        check_shape("within", within, f"{rays_o.shape[0]} 2 3")
    problem = MarchProblem(
        rays_o=rays_o.contiguous(),
        rays_d=rays_d.contiguous(),
        jitter=jitter.contiguous(),
        binary=grid.binary if within is None else grid.binary & grid.cells_within(within),
        radius=grid.radius,
        near=near,
        far=min(far, torch.finfo(rays_o.dtype).max),
    )
    kernels = _kernels(rays_o, backend)
    limit = max(step_size, 2.0 * grid.radius / COARSEST_STEPS_ACROSS)
    step, search = _fit_step(
        lambda step: kernels.find_samples(problem, step), step_size, limit, max_samples
    )
    t_starts, ray_indices, positions = kernels.write_samples(problem, step, search)
    first = torch.cumsum(search.counts, dim=0) - search.counts
    samples = RaySamples(
        t_starts=t_starts,
        t_ends=t_starts + step,
        ray_indices=ray_indices,
        packed_info=torch.stack([first, search.counts], dim=1),
        positions=positions,
        step_size=step,
    )
    if within is None:
        return samples
    low, high = within[ray_indices].unbind(1)
    return select_samples(samples, ((positions >= low) & (positions <= high)).all(dim=1))


def composite(
    sigma: Float[Tensor, "m"],
    features: Float[Tensor, "m c"],
    samples: RaySamples,
    n_rays: int | None = None,
    *,
    backend: str | None = None,
) -> Composited:
    """Composite features along the rays; differentiable in ``sigma`` and ``features``.

    Args:
        sigma: density, at least 0, per unit length.
        features: colours or whatever is to be averaged.
        samples: where the samples lie.
        n_rays: number of rays, checked against ``samples`` when given.
        backend: a kernel backend by name, or ``"nerfacc"``; None chooses.

    Raises:
        ShapeError: tensors that do not fit the samples.
        BackendMissing: ``backend`` is unknown or cannot serve this device.
    """
    check_shape("sigma", sigma, f"{len(samples)}")
    check_shape("features", features, f"{len(samples)} C")
    if n_rays is not None:
        check_shape("samples.packed_info", samples.packed_info, f"{n_rays} 2")
    kernels = _kernels(sigma, backend)
    return Composited(
        *kernels.composite(
            sigma,
            features,
            samples.t_starts,
            samples.t_ends,
            samples.ray_indices,
            samples.packed_info,
        )
    )


def accumulate(
    weights: Float[Tensor, "m"], values: Float[Tensor, "m c"], samples: RaySamples
) -> Float[Tensor, "n c"]:
    """Weighted sum of further values along each ray, with weights of `composite`."""
    sums = values.new_zeros(samples.n_rays, values.shape[1])
    return sums.index_add(0, samples.ray_indices, weights[:, None] * values)


def select_samples(samples: RaySamples, keep: Bool[Tensor, "m"]) -> RaySamples:
    """The marked samples alone, packed again; rays keep their numbers.

    Dropping samples behind an opaque surface (by the transmittance of a pass without gradients)
    saves most of the work on solid objects.
    """
    ray_indices = samples.ray_indices[keep]
    counts = torch.zeros_like(samples.packed_info[:, 0])
    counts = counts.index_add(0, ray_indices, torch.ones_like(ray_indices))
    return RaySamples(
        t_starts=samples.t_starts[keep],
        t_ends=samples.t_ends[keep],
        ray_indices=ray_indices,
        packed_info=torch.stack([torch.cumsum(counts, dim=0) - counts, counts], dim=1),
        positions=samples.positions[keep],
        step_size=samples.step_size,
    )


def _require_finite(rays_o: Tensor, rays_d: Tensor) -> None:
    """Refuse rays that meet nothing in one backend and anything in another."""
    if math.isfinite(float(rays_o.sum() + rays_d.sum())):  # cheaper than to look at each number
        return
    wrong = int((~torch.isfinite(torch.cat([rays_o, rays_d], dim=1))).any(dim=1).sum())
    if not wrong:  # only their sum is beyond the range of numbers
        return
    raise ValueError(
        f"{wrong} of {len(rays_o)} rays have an origin or a direction that is NaN or infinite - "
        "expected numbers. Look at the cameras' positions and fields of view."
    )


def _fit_step(
    find: Callable[[float], Search], step_size: float, limit: float, max_samples: int | None
) -> tuple[float, Search]:
    """The shortest tried step that gives at most ``max_samples``, and its samples."""
    step, search = step_size, find(step_size)
    if max_samples is None:
        return step, search
    while step < limit and (total := int(search.counts.sum())) > max_samples:
        step = min(step * max(total / max(max_samples, 1), MIN_COARSENING), limit)
        search = find(step)
    return step, search


def _kernels(tensor: Tensor, backend: str | None) -> ModuleType:
    if backend == "nerfacc":
        return import_module("renderers.backends.nerfacc")
    name = resolve(tensor.device, dtype=tensor.dtype, prefer=backend)
    return import_module(f"renderers.backends.{name}_march")
