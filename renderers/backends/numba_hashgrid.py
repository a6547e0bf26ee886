"""Multiresolution hash encoding on the CPU: numba kernels behind `torch.autograd.Function`.

Same layout, same indices (bit for bit) and same interface as `torch_hashgrid`. What makes it fast:
the level loop lies outside the point loop, so that one level's table stays in cache; nothing is
stored for the backward pass, which recomputes indices and weights; gradients of the table are
scattered by one thread per level, so that there are no atomics and reruns agree bit for bit.

Arithmetic is strict IEEE (no fastmath): fusing ``x * scale + 0.5`` would move indices, and NaN must
survive to the training loop's guard. A second backward pass falls back to the reference.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from renderers.backends import torch_hashgrid
from renderers.backends.autograd import reference_gradients
from renderers.backends.numba_runtime import KERNEL_LOCK
from renderers.backends.torch_hashgrid import HASH_PRIMES, GridLayout

__all__ = ["encode", "encode_with_jacobian"]

MAX_POINT_BLOCK = 1 << 16
"""Most points per task: many, so that each level's table is fetched into the cache rarely; not
all, so that the features of a task's points stay in the last-level cache between levels."""

_PRIME_Y = np.uint32(HASH_PRIMES[1])
_PRIME_Z = np.uint32(HASH_PRIMES[2])
_STEP = np.uint32(1)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_OPTIONS = {"cache": True, "error_model": "numpy", "boundscheck": False}


def encode(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries f"], layout: GridLayout
) -> Float[Tensor, "n lf"]:
    """Features of positions in 0..1; differentiable in ``x`` and ``table``."""
    return _Encode.apply(x, table, layout)


def encode_with_jacobian(
    x: Float[Tensor, "n 3"], table: Float[Tensor, "entries f"], layout: GridLayout
) -> tuple[Float[Tensor, "n lf"], Float[Tensor, "n 3 lf"]]:
    """Features and their derivatives; differentiable in ``table``.

    Positions that require a gradient need mixed second derivatives: those go to the reference.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return torch_hashgrid.encode_with_jacobian(x, table, layout)
    return _EncodeWithJacobian.apply(x, table, layout)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
        ctx.save_for_backward(x, table)
        ctx.layout = layout
        out = torch.empty(x.shape[0], layout.n_outputs, dtype=torch.float32)
        _run(_forward, x, table, layout, out.numpy(), _block_size(x.shape[0]))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        layout = ctx.layout
        if torch.is_grad_enabled():  # create_graph=True: somebody will differentiate again

            def reference(x: Tensor, table: Tensor) -> Tensor:
                return torch_hashgrid.encode(x, table, layout)

            return *reference_gradients(reference, (x, table), (grad,)), None
        grad_np = grad.contiguous().numpy()
        grad_x = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
            block = _block_size(x.shape[0])
            _run(_backward_positions, x, table, layout, grad_np, grad_x.numpy(), block)
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
            _run(_backward_table, x, grad_table, layout, grad_np, _level_order(layout))
        return grad_x, grad_table, None


class _EncodeWithJacobian(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, layout: GridLayout) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, table)
        ctx.layout = layout
        out = torch.empty(x.shape[0], layout.n_outputs, dtype=torch.float32)
        jac = torch.empty(x.shape[0], 3, layout.n_outputs, dtype=torch.float32)
        block = _block_size(x.shape[0])
        _run(_forward_jacobian, x, table, layout, out.numpy(), jac.numpy(), block)
        return out, jac

    @staticmethod
    def backward(ctx, grad: Tensor, grad_jac: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        layout = ctx.layout
        if torch.is_grad_enabled():

            def reference(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
                return torch_hashgrid.encode_with_jacobian(x, table, layout)

            return *reference_gradients(reference, (x, table), (grad, grad_jac)), None
        grad_table = None
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table, memory_format=torch.contiguous_format)
            grads = (grad.contiguous().numpy(), grad_jac.contiguous().numpy())
            _run(_backward_table_jacobian, x, grad_table, layout, *grads, _level_order(layout))
        return None, grad_table, None


def _run(kernel, x: Tensor, table: Tensor, layout: GridLayout, *rest) -> None:
    """Call a kernel on positions and a table (or the gradient of one), under the lock."""
    if x.shape[0] == 0:
        return
    features = (0,) * layout.n_features  # its length is a constant to the compiler
    positions = x.detach().contiguous().numpy()
    rows = table.detach().contiguous().numpy()
    with KERNEL_LOCK:
        kernel(positions, rows, *_arrays(layout), features, *rest)


@cache
def _arrays(layout: GridLayout) -> tuple:
    return (
        np.array(layout.scales, np.float32),
        np.array(layout.resolutions, np.uint32),
        np.array(layout.offsets, np.int64),
        np.array(layout.hashed, np.bool_),
        np.uint32(layout.hash_mask),
    )


def _block_size(n_points: int) -> int:
    share = -(-n_points // numba.get_num_threads())
    return min(max(share, 1), MAX_POINT_BLOCK)


def _level_order(layout: GridLayout) -> np.ndarray:
    """Levels, dealt so that the contiguous shares of the threads have about equal cost."""
    n_threads = numba.get_num_threads()
    by_size = sorted(
        range(layout.n_levels), key=lambda i: layout.offsets[i] - layout.offsets[i + 1]
    )
    return np.array([level for share in range(n_threads) for level in by_size[share::n_threads]])


# LLVM does not inline these by itself, and a call per corner costs 60 % more time.
@njit(inline="always", **_OPTIONS)
def _cell(x, i, scale, resolution, hashed, mask, last):
    """Position in the cell and the rows of its corners, x fastest (Eq. 4)."""
    px = x[i, 0] * scale + _HALF
    py = x[i, 1] * scale + _HALF
    pz = x[i, 2] * scale + _HALF
    ix, iy, iz = np.uint32(px), np.uint32(py), np.uint32(pz)
    wx, wy, wz = px - np.float32(ix), py - np.float32(iy), pz - np.float32(iz)
    if hashed:
        x1 = ix + _STEP
        y0, z0 = iy * _PRIME_Y, iz * _PRIME_Z
        y1, z1 = y0 + _PRIME_Y, z0 + _PRIME_Z
        i0, i1 = (ix ^ y0 ^ z0) & mask, (x1 ^ y0 ^ z0) & mask
        i2, i3 = (ix ^ y1 ^ z0) & mask, (x1 ^ y1 ^ z0) & mask
        i4, i5 = (ix ^ y0 ^ z1) & mask, (x1 ^ y0 ^ z1) & mask
        i6, i7 = (ix ^ y1 ^ z1) & mask, (x1 ^ y1 ^ z1) & mask
    else:
        row, sheet = resolution, resolution * resolution
        # Only a NaN position can leave the level; the bound keeps it from reading elsewhere.
        i0 = ix + iy * row + iz * sheet
        i1 = min(i0 + _STEP, last)
        i2, i3 = min(i0 + row, last), min(i0 + row + _STEP, last)
        i4, i5 = min(i0 + sheet, last), min(i0 + sheet + _STEP, last)
        i6, i7 = min(i0 + sheet + row, last), min(i0 + sheet + row + _STEP, last)
        i0 = min(i0, last)
    return wx, wy, wz, i0, i1, i2, i3, i4, i5, i6, i7


@njit(inline="always", **_OPTIONS)
def _scatter(rows, row, weight, grad, i, k, features):
    for f in range(len(features)):
        rows[row, f] += weight * grad[i, k + f]


@njit(inline="always", **_OPTIONS)
def _scatter_jacobian(rows, row, weight, slope_x, slope_y, slope_z, grad, grad_jac, i, k, features):
    for f in range(len(features)):
        rows[row, f] += (
            weight * grad[i, k + f]
            + slope_x * grad_jac[i, 0, k + f]
            + slope_y * grad_jac[i, 1, k + f]
            + slope_z * grad_jac[i, 2, k + f]
        )


@njit(parallel=True, **_OPTIONS)
def _forward(x, table, scales, resolutions, offsets, hashed, mask, features, out, block):
    n_points, n_levels, width = x.shape[0], scales.shape[0], len(features)
    for task in prange((n_points + block - 1) // block):
        first, stop = task * block, min(n_points, (task + 1) * block)
        for level in range(n_levels):
            rows = table[offsets[level] : offsets[level + 1]]
            last = np.uint32(rows.shape[0] - 1)
            scale, resolution, is_hashed = scales[level], resolutions[level], hashed[level]
            for i in range(first, stop):
                wx, wy, wz, i0, i1, i2, i3, i4, i5, i6, i7 = _cell(
                    x, i, scale, resolution, is_hashed, mask, last
                )
                ux, uy, uz = _ONE - wx, _ONE - wy, _ONE - wz
                w00, w10, w01, w11 = uy * uz, wy * uz, uy * wz, wy * wz
                for f in range(len(features)):
                    out[i, width * level + f] = (
                        ux * w00 * rows[i0, f]
                        + wx * w00 * rows[i1, f]
                        + ux * w10 * rows[i2, f]
                        + wx * w10 * rows[i3, f]
                        + ux * w01 * rows[i4, f]
                        + wx * w01 * rows[i5, f]
                        + ux * w11 * rows[i6, f]
                        + wx * w11 * rows[i7, f]
                    )


@njit(parallel=True, **_OPTIONS)
def _forward_jacobian(
    x, table, scales, resolutions, offsets, hashed, mask, features, out, jac, block
):
    n_points, n_levels, width = x.shape[0], scales.shape[0], len(features)
    for task in prange((n_points + block - 1) // block):
        first, stop = task * block, min(n_points, (task + 1) * block)
        for level in range(n_levels):
            rows = table[offsets[level] : offsets[level + 1]]
            last = np.uint32(rows.shape[0] - 1)
            scale, resolution, is_hashed = scales[level], resolutions[level], hashed[level]
            for i in range(first, stop):
                wx, wy, wz, i0, i1, i2, i3, i4, i5, i6, i7 = _cell(
                    x, i, scale, resolution, is_hashed, mask, last
                )
                ux, uy, uz = _ONE - wx, _ONE - wy, _ONE - wz
                w00, w10, w01, w11 = uy * uz, wy * uz, uy * wz, wy * wz
                for f in range(len(features)):
                    v0, v1, v2, v3 = rows[i0, f], rows[i1, f], rows[i2, f], rows[i3, f]
                    v4, v5, v6, v7 = rows[i4, f], rows[i5, f], rows[i6, f], rows[i7, f]
                    # Blend along x first: four values at the corners of the y-z square.
                    a, b = ux * v0 + wx * v1, ux * v2 + wx * v3
                    c, d = ux * v4 + wx * v5, ux * v6 + wx * v7
                    k = width * level + f
                    out[i, k] = w00 * a + w10 * b + w01 * c + w11 * d
                    jac[i, 0, k] = scale * (
                        w00 * (v1 - v0) + w10 * (v3 - v2) + w01 * (v5 - v4) + w11 * (v7 - v6)
                    )
                    jac[i, 1, k] = scale * (uz * (b - a) + wz * (d - c))
                    jac[i, 2, k] = scale * (uy * (c - a) + wy * (d - b))


@njit(parallel=True, **_OPTIONS)
def _backward_table(
    x, table_grad, scales, resolutions, offsets, hashed, mask, features, grad, order
):
    n_points, width = x.shape[0], len(features)
    for task in prange(order.shape[0]):
        level = order[task]
        rows = table_grad[offsets[level] : offsets[level + 1]]
        last = np.uint32(rows.shape[0] - 1)
        scale, resolution, is_hashed = scales[level], resolutions[level], hashed[level]
        for i in range(n_points):
            wx, wy, wz, i0, i1, i2, i3, i4, i5, i6, i7 = _cell(
                x, i, scale, resolution, is_hashed, mask, last
            )
            ux, uy, uz = _ONE - wx, _ONE - wy, _ONE - wz
            w00, w10, w01, w11 = uy * uz, wy * uz, uy * wz, wy * wz
            k = width * level
            _scatter(rows, i0, ux * w00, grad, i, k, features)
            _scatter(rows, i1, wx * w00, grad, i, k, features)
            _scatter(rows, i2, ux * w10, grad, i, k, features)
            _scatter(rows, i3, wx * w10, grad, i, k, features)
            _scatter(rows, i4, ux * w01, grad, i, k, features)
            _scatter(rows, i5, wx * w01, grad, i, k, features)
            _scatter(rows, i6, ux * w11, grad, i, k, features)
            _scatter(rows, i7, wx * w11, grad, i, k, features)


@njit(parallel=True, **_OPTIONS)
def _backward_table_jacobian(
    x, table_grad, scales, resolutions, offsets, hashed, mask, features, grad, grad_jac, order
):
    """One scatter for both outputs: a corner gets ``w_c g + sum_k dw_c/dx_k g_k``."""
    n_points, width = x.shape[0], len(features)
    for task in prange(order.shape[0]):
        level = order[task]
        rows = table_grad[offsets[level] : offsets[level + 1]]
        last = np.uint32(rows.shape[0] - 1)
        scale, resolution, is_hashed = scales[level], resolutions[level], hashed[level]
        for i in range(n_points):
            wx, wy, wz, i0, i1, i2, i3, i4, i5, i6, i7 = _cell(
                x, i, scale, resolution, is_hashed, mask, last
            )
            ux, uy, uz = _ONE - wx, _ONE - wy, _ONE - wz
            w00, w10, w01, w11 = uy * uz, wy * uz, uy * wz, wy * wz
            # Slopes along x (not yet signed), then along y and z on the lower and upper x sides.
            x00, x10, x01, x11 = scale * w00, scale * w10, scale * w01, scale * w11
            su, sw = scale * ux, scale * wx
            yu0, yw0, yu1, yw1 = su * uz, sw * uz, su * wz, sw * wz
            zu0, zw0, zu1, zw1 = su * uy, sw * uy, su * wy, sw * wy
            j, k, fs = grad_jac, width * level, features
            _scatter_jacobian(rows, i0, ux * w00, -x00, -yu0, -zu0, grad, j, i, k, fs)
            _scatter_jacobian(rows, i1, wx * w00, x00, -yw0, -zw0, grad, j, i, k, fs)
            _scatter_jacobian(rows, i2, ux * w10, -x10, yu0, -zu1, grad, j, i, k, fs)
            _scatter_jacobian(rows, i3, wx * w10, x10, yw0, -zw1, grad, j, i, k, fs)
            _scatter_jacobian(rows, i4, ux * w01, -x01, -yu1, zu0, grad, j, i, k, fs)
            _scatter_jacobian(rows, i5, wx * w01, x01, -yw1, zw0, grad, j, i, k, fs)
            _scatter_jacobian(rows, i6, ux * w11, -x11, yu1, zu1, grad, j, i, k, fs)
            _scatter_jacobian(rows, i7, wx * w11, x11, yw1, zw1, grad, j, i, k, fs)


@njit(parallel=True, **_OPTIONS)
def _backward_positions(
    x, table, scales, resolutions, offsets, hashed, mask, features, grad, grad_x, block
):
    n_points, n_levels, width = x.shape[0], scales.shape[0], len(features)
    for task in prange((n_points + block - 1) // block):
        first, stop = task * block, min(n_points, (task + 1) * block)
        grad_x[first:stop] = _ZERO
        for level in range(n_levels):
            rows = table[offsets[level] : offsets[level + 1]]
            last = np.uint32(rows.shape[0] - 1)
            scale, resolution, is_hashed = scales[level], resolutions[level], hashed[level]
            for i in range(first, stop):
                wx, wy, wz, i0, i1, i2, i3, i4, i5, i6, i7 = _cell(
                    x, i, scale, resolution, is_hashed, mask, last
                )
                ux, uy, uz = _ONE - wx, _ONE - wy, _ONE - wz
                sx, sy, sz = _ZERO, _ZERO, _ZERO
                for f in range(len(features)):
                    g = scale * grad[i, width * level + f]
                    v0, v1, v2, v3 = rows[i0, f], rows[i1, f], rows[i2, f], rows[i3, f]
                    v4, v5, v6, v7 = rows[i4, f], rows[i5, f], rows[i6, f], rows[i7, f]
                    a, b = ux * v0 + wx * v1, ux * v2 + wx * v3
                    c, d = ux * v4 + wx * v5, ux * v6 + wx * v7
                    sx += g * (
                        uz * (uy * (v1 - v0) + wy * (v3 - v2))
                        + wz * (uy * (v5 - v4) + wy * (v7 - v6))
                    )
                    sy += g * (uz * (b - a) + wz * (d - c))
                    sz += g * (uy * (c - a) + wy * (d - b))
                grad_x[i, 0] += sx
                grad_x[i, 1] += sy
                grad_x[i, 2] += sz
