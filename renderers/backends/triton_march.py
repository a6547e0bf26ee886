"""Ray marching and compositing on CUDA: Triton kernels, one lane per ray.

Same samples and same interface as `torch_march`. Marching takes two passes, one that counts and one
that writes; compositing walks each ray's samples in order, its backward pass in reverse, so there
are no atomics and reruns agree bit for bit. Loops are written with ``while``, because the
interpreter of Triton 3.6 cannot run ``for`` loops with a tensor as bound under NumPy 2.4 (that of
3.9 can).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from renderers.backends import torch_march
from renderers.backends.autograd import reference_gradients
from renderers.backends.torch_march import TINY_DIRECTION, MarchProblem, Search

__all__ = ["composite", "find_samples", "write_samples"]

RAYS = 64
"""Rays per program; its lanes wait for the longest one, so few are better than many."""

_TINY = tl.constexpr(TINY_DIRECTION)
_SERIES_BELOW = tl.constexpr(0.1)
"""Optical depths under this use the series of 1 - exp(-x), which cancels no digits."""


def find_samples(problem: MarchProblem, step: float) -> Search:
    """Count the samples on every ray."""
    counts = torch.zeros(problem.rays_o.shape[0], dtype=torch.int64, device=problem.rays_o.device)
    # The tensors that only a writing pass touches are stand-ins here.
    unused = (problem.rays_o, counts, problem.rays_o)
    _launch_march(problem, step, counts, counts, *unused, WRITE=False)
    return Search(counts=counts, found=())


def write_samples(
    problem: MarchProblem, step: float, search: Search
) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m 3"]]:
    """Starts, ray numbers and middles of all samples, ray after ray."""
    counts = search.counts
    total = int(counts.sum())
    t_starts = problem.rays_o.new_empty(total)
    ray_indices = counts.new_empty(total)
    positions = problem.rays_o.new_empty(total, 3)
    if total:
        first = torch.cumsum(counts, dim=0) - counts
        out = (first, counts, t_starts, ray_indices, positions)
        _launch_march(problem, step, *out, WRITE=True)
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
        n_rays, n_channels = packed_info.shape[0], features.shape[1]
        weights, transmittance = torch.empty_like(sigma), torch.empty_like(sigma)
        values = features.new_zeros(n_rays, n_channels)
        opacity, depth = sigma.new_zeros(n_rays), sigma.new_zeros(n_rays)
        inputs = (sigma, features, t_starts, t_ends, packed_info)
        _launch_composite(
            _composite_forward, inputs, (weights, transmittance, values, opacity, depth), n_channels
        )
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
        grad_sigma, grad_features = sigma.new_zeros(sigma.shape), features.new_zeros(features.shape)
        reads = (features, t_starts, t_ends, packed_info, weights, transmittance, *grads)
        _launch_composite(
            _composite_backward, reads, (grad_sigma, grad_features), features.shape[1]
        )
        return grad_sigma, grad_features, None, None, None, None


def _launch_march(
    problem: MarchProblem,
    step: float,
    first: Tensor,
    counts: Tensor,
    t_starts: Tensor,
    ray_indices: Tensor,
    positions: Tensor,
    *,
    WRITE: bool,
) -> None:
    n_rays, resolution = problem.rays_o.shape[0], problem.binary.shape[0]
    if n_rays == 0:
        return
    with torch.cuda.device_of(problem.rays_o):
        _march[(triton.cdiv(n_rays, RAYS),)](
            problem.rays_o,
            problem.rays_d,
            problem.jitter,
            problem.binary.view(torch.uint8),
            first,
            counts,
            t_starts,
            ray_indices,
            positions,
            n_rays,
            resolution,
            problem.radius,
            problem.near,
            problem.far,
            step,
            resolution / (2.0 * problem.radius),
            WRITE=WRITE,
            LANES=RAYS,
            # Fused multiply-adds would move samples across cell borders.
            enable_fp_fusion=False,
        )


def _launch_composite(
    kernel, reads: tuple[Tensor, ...], writes: tuple[Tensor, ...], n_channels: int
) -> None:
    packed_info = next(tensor for tensor in reads if tensor.dtype == torch.int64)
    n_rays = packed_info.shape[0]
    if n_rays == 0:
        return
    with torch.cuda.device_of(packed_info):
        kernel[(triton.cdiv(n_rays, RAYS),)](
            *(tensor.contiguous() for tensor in reads),
            *writes,
            n_rays,
            C=n_channels,
            C_PADDED=triton.next_power_of_2(max(n_channels, 1)),
            LANES=RAYS,
        )


@triton.jit
def _slab(origin, direction, radius, enter, leave):
    """Narrow an interval to the part between the two planes of one axis."""
    safe = tl.where(tl.abs(direction) < _TINY, _TINY, direction)
    inverse = tl.div_rn(tl.full(safe.shape, 1.0, tl.float32), safe)
    a, b = (-radius - origin) * inverse, (radius - origin) * inverse
    return tl.maximum(enter, tl.minimum(a, b)), tl.minimum(leave, tl.maximum(a, b))


@triton.jit
def _cell_along(origin, direction, middle, radius, cells_per_unit, resolution):
    along = (origin + radius) * cells_per_unit + middle * (direction * cells_per_unit)
    return tl.minimum(tl.maximum(along.to(tl.int32), 0), resolution - 1)


@triton.jit
def _march(
    RaysO, RaysD, Jitter, Binary, First, Counts, TStarts, RayIndices, Positions,
    n_rays, resolution, radius, near, far, step, cells_per_unit,
    WRITE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Count the samples of each ray (WRITE false) or write them."""
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = i < n_rays
    ox, dx = tl.load(RaysO + 3 * i, live, 0.0), tl.load(RaysD + 3 * i, live, 0.0)
    oy, dy = tl.load(RaysO + 3 * i + 1, live, 0.0), tl.load(RaysD + 3 * i + 1, live, 0.0)
    oz, dz = tl.load(RaysO + 3 * i + 2, live, 0.0), tl.load(RaysD + 3 * i + 2, live, 0.0)
    jitter = tl.load(Jitter + i, live, 0.0)
    enter = tl.full([LANES], 0.0, tl.float32) + near
    leave = tl.full([LANES], 0.0, tl.float32) + far
    enter, leave = _slab(ox, dx, radius, enter, leave)
    enter, leave = _slab(oy, dy, radius, enter, leave)
    enter, leave = _slab(oz, dz, radius, enter, leave)
    hit = live & (enter < leave)
    lowest = tl.where(hit, tl.floor(enter / step - jitter), 0.0)
    slots = tl.where(hit, (leave - enter) / step + 3.0, 0.0).to(tl.int32)
    at = tl.full([LANES], 0, tl.int64)
    if WRITE:
        at = tl.load(First + i, live, 0)
    count = tl.full([LANES], 0, tl.int64)
    longest = tl.max(slots, axis=0)
    slot = 0
    while slot < longest:
        start = (lowest + slot + jitter) * step
        middle = start + 0.5 * step
        inside = hit & (middle >= enter) & (middle < leave)
        x = _cell_along(ox, dx, middle, radius, cells_per_unit, resolution)
        y = _cell_along(oy, dy, middle, radius, cells_per_unit, resolution)
        z = _cell_along(oz, dz, middle, radius, cells_per_unit, resolution)
        cell = (x * resolution + y) * resolution + z
        inside = inside & (tl.load(Binary + cell, inside, 0) != 0)
        if WRITE:
            tl.store(TStarts + at, start, inside)
            tl.store(RayIndices + at, i.to(tl.int64), inside)
            tl.store(Positions + 3 * at, ox + middle * dx, inside)
            tl.store(Positions + 3 * at + 1, oy + middle * dy, inside)
            tl.store(Positions + 3 * at + 2, oz + middle * dz, inside)
            at += inside.to(tl.int64)
        count += inside.to(tl.int64)
        slot += 1
    if not WRITE:
        tl.store(Counts + i, count, live)


@triton.jit
def _absorbed(optical):
    """1 - exp(-x) without cancellation for small x."""
    series = 1.0 - optical * (1.0 / 5.0) * (1.0 - optical * (1.0 / 6.0))
    series = 1.0 - optical * (1.0 / 3.0) * (1.0 - optical * (1.0 / 4.0) * series)
    series = optical * (1.0 - optical * 0.5 * series)
    return tl.where(optical < _SERIES_BELOW, series, 1.0 - tl.exp(-optical))


@triton.jit
def _composite_forward(
    Sigma, Features, TStarts, TEnds, PackedInfo, Weights, Transmittance, Values, Opacity, Depth,
    n_rays, C: tl.constexpr, C_PADDED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = i < n_rays
    first = tl.load(PackedInfo + 2 * i, live, 0)
    count = tl.load(PackedInfo + 2 * i + 1, live, 0)
    c = tl.arange(0, C_PADDED)
    channels = (c < C)[None, :]
    through = tl.full([LANES], 1.0, tl.float32)
    opacity = tl.full([LANES], 0.0, tl.float32)
    depth = tl.full([LANES], 0.0, tl.float32)
    values = tl.full([LANES, C_PADDED], 0.0, tl.float32)
    longest = tl.max(count, axis=0)
    slot = 0
    while slot < longest:
        here = slot < count
        k = first + slot
        start, end = tl.load(TStarts + k, here, 0.0), tl.load(TEnds + k, here, 0.0)
        absorbed = _absorbed(tl.load(Sigma + k, here, 0.0) * (end - start))
        weight = through * absorbed
        tl.store(Weights + k, weight, here)
        tl.store(Transmittance + k, through, here)
        feature = tl.load(Features + k[:, None] * C + c[None, :], here[:, None] & channels, 0.0)
        values += weight[:, None] * feature
        opacity += weight
        depth += weight * (0.5 * (start + end))
        through *= 1.0 - absorbed
        slot += 1
    tl.store(Opacity + i, opacity, live)
    tl.store(Depth + i, depth, live)
    tl.store(Values + i[:, None] * C + c[None, :], values, live[:, None] & channels)


@triton.jit
def _composite_backward(
    Features, TStarts, TEnds, PackedInfo, Weights, Transmittance,
    GradValues, GradOpacity, GradDepth, GradWeights, GradSigma, GradFeatures,
    n_rays, C: tl.constexpr, C_PADDED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """``dL/dsigma_k = dt_k ((T_k - w_k) g_k - sum_{j>k} w_j g_j)``, with ``g = dL/dw``."""
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    live = i < n_rays
    first = tl.load(PackedInfo + 2 * i, live, 0)
    count = tl.load(PackedInfo + 2 * i + 1, live, 0)
    c = tl.arange(0, C_PADDED)
    channels = (c < C)[None, :]
    grad_values = tl.load(GradValues + i[:, None] * C + c[None, :], live[:, None] & channels, 0.0)
    grad_opacity = tl.load(GradOpacity + i, live, 0.0)
    grad_depth = tl.load(GradDepth + i, live, 0.0)
    behind = tl.full([LANES], 0.0, tl.float32)
    longest = tl.max(count, axis=0)
    slot = 0
    while slot < longest:
        here = slot < count
        k = first + count - 1 - slot
        start, end = tl.load(TStarts + k, here, 0.0), tl.load(TEnds + k, here, 0.0)
        weight = tl.load(Weights + k, here, 0.0)
        through = tl.load(Transmittance + k, here, 0.0)
        at = k[:, None] * C + c[None, :]
        feature = tl.load(Features + at, here[:, None] & channels, 0.0)
        g = tl.load(GradWeights + k, here, 0.0) + grad_opacity + grad_depth * (0.5 * (start + end))
        g += tl.sum(grad_values * feature, axis=1)
        tl.store(GradFeatures + at, grad_values * weight[:, None], here[:, None] & channels)
        tl.store(GradSigma + k, (end - start) * ((through - weight) * g - behind), here)
        behind += weight * g
        slot += 1
