"""Adapter for nerfacc 0.5 (MIT, CUDA only): the interface of `torch_march` on its kernels.

Used when a caller says ``backend="nerfacc"``. nerfacc's sampling lattice starts at each ray's near
plane, so the near planes are put on our lattice and both place the same samples, up to the rounding
of its running sum of steps. Transmittance and accumulation are its packed functions.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from renderers.backends import require_adapter, torch_march
from renderers.backends.torch_march import MarchProblem, Search
from renderers.errors import BackendMissing

__all__ = ["composite", "find_samples", "write_samples"]


def find_samples(problem: MarchProblem, step: float) -> Search:
    """Look for the samples of every ray."""
    t_starts, ray_indices = _traverse(problem, step)
    counts = torch.bincount(ray_indices, minlength=problem.rays_o.shape[0])
    return Search(counts=counts, found=(t_starts, ray_indices))


def write_samples(
    problem: MarchProblem, step: float, search: Search
) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m 3"]]:
    """Starts, ray numbers and middles of all samples, ray after ray."""
    t_starts, ray_indices = search.found
    middles = (t_starts + 0.5 * step)[:, None]
    positions = problem.rays_o[ray_indices] + middles * problem.rays_d[ray_indices]
    return t_starts, ray_indices, positions


def composite(
    sigma: Float[Tensor, "m"],
    features: Float[Tensor, "m c"],
    t_starts: Float[Tensor, "m"],
    t_ends: Float[Tensor, "m"],
    ray_indices: Int[Tensor, "m"],
    packed_info: Int[Tensor, "n 2"],
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n"], Float[Tensor, "n"], Float[Tensor, "m"]]:
    """Composited features, opacity, depth and the samples' weights."""
    library = _library(sigma)
    if sigma.shape[0] == 0:  # its scans take no empty tensors
        return torch_march.composite(sigma, features, t_starts, t_ends, ray_indices, packed_info)
    n_rays = packed_info.shape[0]
    weights, _, _ = library.render_weight_from_density(
        t_starts, t_ends, sigma, packed_info=packed_info
    )
    columns = torch.cat([features, 0.5 * (t_starts + t_ends)[:, None]], dim=1)
    sums = library.accumulate_along_rays(
        weights, values=columns, ray_indices=ray_indices, n_rays=n_rays
    )
    opacity = library.accumulate_along_rays(
        weights, values=None, ray_indices=ray_indices, n_rays=n_rays
    )
    return sums[:, :-1], opacity[:, 0], sums[:, -1], weights


def _traverse(problem: MarchProblem, step: float) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"]]:
    library = _library(problem.rays_o)
    r = problem.radius
    # The first lattice point whose interval's middle is not before the near plane.
    slot = torch.ceil(problem.near / step - problem.jitter - 0.5)
    intervals, samples, _ = library.traverse_grids(
        problem.rays_o,
        problem.rays_d,
        problem.binary[None],
        problem.rays_o.new_tensor([[-r, -r, -r, r, r, r]]),
        near_planes=(slot + problem.jitter) * step,
        far_planes=torch.full_like(problem.jitter, problem.far),
        step_size=step,
        cone_angle=0.0,
    )
    return intervals.vals[intervals.is_left], samples.ray_indices.long()


def _library(tensor: Tensor) -> ModuleType:
    library = _imported()
    if not tensor.is_cuda:
        raise BackendMissing(
            f"backend: 'nerfacc' was asked for on device {str(tensor.device)!r}. Expected CUDA "
            "tensors. Move them to the GPU, or use backend: auto."
        )
    return library


@cache
def _imported() -> ModuleType:
    require_adapter("nerfacc", "ray marching and compositing")
    import nerfacc

    return nerfacc
