"""Ray marching and compositing on the CPU: numba kernels, parallel over rays.

Same samples (bit for bit) and same interface as `torch_march`. Marching takes two passes, one that
finds the samples and one that writes them. Compositing keeps each sample's weight and
transmittance; its backward pass is one loop per ray from the last sample to the first.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from renderers.backends import torch_march
from renderers.backends.autograd import reference_gradients
from renderers.backends.numba_runtime import KERNEL_LOCK
from renderers.backends.torch_march import TINY_DIRECTION, MarchProblem, Search

__all__ = ["composite", "find_samples", "write_samples"]

WORD_BITS = 63
"""Lattice points per 64-bit word; the sign bit is left out, since shifts would copy it."""

_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_TINY = np.float32(TINY_DIRECTION)
# No fastmath: a fused multiply-add would move samples across cell borders.
_OPTIONS = {"cache": True, "error_model": "numpy", "boundscheck": False}


def find_samples(problem: MarchProblem, step: float) -> Search:
    """Look for the samples of every ray; what was found is kept as one bit per lattice point."""
    n_rays = problem.rays_o.shape[0]
    counts = torch.zeros(n_rays, dtype=torch.int64)
    n_slots = int(2.0 * 3**0.5 * problem.radius / step) + 4
    hits = torch.empty(n_rays, -(-n_slots // WORD_BITS), dtype=torch.int64)
    if n_rays:
        with KERNEL_LOCK:
            _find(*_arguments(problem, step), counts.numpy(), hits.numpy())
    return Search(counts=counts, found=(hits,))


def write_samples(
    problem: MarchProblem, step: float, search: Search
) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m 3"]]:
    """Starts, ray numbers and middles of all samples, ray after ray."""
    total = int(search.counts.sum())
    t_starts = torch.empty(total, dtype=torch.float32)
    ray_indices = torch.empty(total, dtype=torch.int64)
    positions = torch.empty(total, 3, dtype=torch.float32)
    if total:
        first = torch.cumsum(search.counts, dim=0) - search.counts
        out = _numpy(*search.found, first, t_starts, ray_indices, positions)
        with KERNEL_LOCK:
            _write(*_arguments(problem, step), *out)
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
    return _Composite.apply(sigma, features, t_starts, t_ends, ray_indices, packed_info)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sigma, features, t_starts, t_ends, ray_indices, packed_info):
        n_rays, n_samples = packed_info.shape[0], sigma.shape[0]
        new = {"dtype": torch.float32}
        weights, transmittance = torch.empty(n_samples, **new), torch.empty(n_samples, **new)
        values = torch.zeros(n_rays, features.shape[1], **new)
        opacity, depth = torch.zeros(n_rays, **new), torch.zeros(n_rays, **new)
        inputs = _numpy(sigma, features, t_starts, t_ends, packed_info)
        outputs = _numpy(weights, transmittance, values, opacity, depth)
        if n_rays and n_samples:
            with KERNEL_LOCK:
                _composite_forward(*inputs, *outputs)
        ctx.save_for_backward(
            sigma, features, t_starts, t_ends, ray_indices, packed_info, weights, transmittance
        )
        return values, opacity, depth, weights

    @staticmethod
    def backward(ctx, *grads):
        *inputs, weights, transmittance = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: somebody will differentiate again
            return reference_gradients(torch_march.composite, tuple(inputs), grads)
        sigma, features, t_starts, t_ends, _, packed_info = inputs
        grad_sigma = torch.zeros(sigma.shape, dtype=torch.float32)
        grad_features = torch.zeros(features.shape, dtype=torch.float32)
        if packed_info.shape[0] and sigma.shape[0]:
            arrays = _numpy(features, t_starts, t_ends, packed_info, weights, transmittance, *grads)
            with KERNEL_LOCK:
                _composite_backward(*arrays, grad_sigma.numpy(), grad_features.numpy())
        return grad_sigma, grad_features, None, None, None, None


def _numpy(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def _arguments(problem: MarchProblem, step: float) -> tuple:
    resolution = problem.binary.shape[0]
    scalars = (problem.radius, problem.near, problem.far, step, resolution / (2 * problem.radius))
    rays = _numpy(problem.rays_o, problem.rays_d, problem.jitter, problem.binary.reshape(-1))
    return *rays, np.int64(resolution), *(np.float32(value) for value in scalars)


@njit(inline="always", **_OPTIONS)
def _slab(origin, direction, radius, enter, leave):
    """Narrow an interval to the part between the two planes of one axis."""
    inverse = _ONE / (_TINY if abs(direction) < _TINY else direction)
    a, b = (-radius - origin) * inverse, (radius - origin) * inverse
    return max(enter, min(a, b)), min(leave, max(a, b))


@njit(inline="always", **_OPTIONS)
def _box(o, d, i, radius, near, far):
    enter, leave = near, far
    enter, leave = _slab(o[i, 0], d[i, 0], radius, enter, leave)
    enter, leave = _slab(o[i, 1], d[i, 1], radius, enter, leave)
    return _slab(o[i, 2], d[i, 2], radius, enter, leave)


@njit(inline="always", **_OPTIONS)
def _cell_along(position, resolution):
    return min(max(np.int64(position), 0), resolution - 1)


@njit(parallel=True, **_OPTIONS)
def _find(o, d, jitter, binary, resolution, radius, near, far, step, cells_per_unit, counts, hits):
    for i in prange(o.shape[0]):
        enter, leave = _box(o, d, i, radius, near, far)
        hits[i] = 0
        count = 0
        if enter < leave:
            lowest = np.floor(enter / step - jitter[i])
            # In units of cells, so that only a product and a sum are left for each lattice point.
            ox, dx = (o[i, 0] + radius) * cells_per_unit, d[i, 0] * cells_per_unit
            oy, dy = (o[i, 1] + radius) * cells_per_unit, d[i, 1] * cells_per_unit
            oz, dz = (o[i, 2] + radius) * cells_per_unit, d[i, 2] * cells_per_unit
            n_slots = min(np.int64((leave - enter) / step) + 3, hits.shape[1] * WORD_BITS)
            for slot in range(n_slots):
                middle = (lowest + np.float32(slot) + jitter[i]) * step + _HALF * step
                if enter <= middle < leave:
                    x = _cell_along(ox + middle * dx, resolution)
                    y = _cell_along(oy + middle * dy, resolution)
                    z = _cell_along(oz + middle * dz, resolution)
                    if binary[(x * resolution + y) * resolution + z]:
                        hits[i, slot // WORD_BITS] |= np.int64(1) << np.int64(slot % WORD_BITS)
                        count += 1
        counts[i] = count


@njit(parallel=True, **_OPTIONS)
def _write(
    o, d, jitter, binary, resolution, radius, near, far, step, cells_per_unit,
    hits, first, t_starts, ray_indices, positions,
):  # fmt: skip
    for i in prange(o.shape[0]):
        at = first[i]
        enter, _ = _box(o, d, i, radius, near, far)
        lowest = np.floor(enter / step - jitter[i])
        for word in range(hits.shape[1]):
            bits, slot = hits[i, word], word * WORD_BITS
            while bits != 0:
                if bits & 1:
                    start = (lowest + np.float32(slot) + jitter[i]) * step
                    middle = start + _HALF * step
                    t_starts[at] = start
                    ray_indices[at] = i
                    positions[at, 0] = o[i, 0] + middle * d[i, 0]
                    positions[at, 1] = o[i, 1] + middle * d[i, 1]
                    positions[at, 2] = o[i, 2] + middle * d[i, 2]
                    at += 1
                bits >>= 1
                slot += 1


@njit(parallel=True, **_OPTIONS)
def _composite_forward(
    sigma, features, t_starts, t_ends, packed_info, weights, transmittance, values, opacity, depth
):
    for i in prange(packed_info.shape[0]):
        first, count = packed_info[i]
        through, total, distance = _ONE, _ZERO, _ZERO
        for k in range(first, first + count):
            absorbed = -np.expm1(-sigma[k] * (t_ends[k] - t_starts[k]))
            weight = through * absorbed
            weights[k] = weight
            transmittance[k] = through
            for c in range(features.shape[1]):
                values[i, c] += weight * features[k, c]
            total += weight
            distance += weight * (_HALF * (t_starts[k] + t_ends[k]))
            through *= _ONE - absorbed
        opacity[i] = total
        depth[i] = distance


@njit(parallel=True, **_OPTIONS)
def _composite_backward(
    features, t_starts, t_ends, packed_info, weights, transmittance,
    grad_values, grad_opacity, grad_depth, grad_weights, grad_sigma, grad_features,
):  # fmt: skip
    """``dL/dsigma_k = dt_k ((T_k - w_k) g_k - sum_{j>k} w_j g_j)``, with ``g = dL/dw``."""
    for i in prange(packed_info.shape[0]):
        first, count = packed_info[i]
        behind = _ZERO
        for k in range(first + count - 1, first - 1, -1):
            weight = weights[k]
            middle = _HALF * (t_starts[k] + t_ends[k])
            g = grad_weights[k] + grad_opacity[i] + grad_depth[i] * middle
            for c in range(features.shape[1]):
                g += grad_values[i, c] * features[k, c]
                grad_features[k, c] = grad_values[i, c] * weight
            length = t_ends[k] - t_starts[k]
            grad_sigma[k] = length * ((transmittance[k] - weight) * g - behind)
            behind += weight * g
