"""Multiresolution hash encoding on CUDA: Triton kernels behind `torch.autograd.Function`.

Same layout, same indices (bit for bit) and same interface as `torch_hashgrid`. A program handles
one block of points of one level, and programs are launched level after level, so that the table of
one level at a time occupies the L2 cache. Table gradients are scattered with atomics: reruns agree
up to the order of summation only, unlike on the CPU.

The kernels also run without a GPU in Triton's interpreter (``TRITON_INTERPRET=1``, slow), which is
how the tests prove them.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from renderers.backends import torch_hashgrid
from renderers.backends.autograd import reference_gradients
from renderers.backends.torch_hashgrid import HASH_PRIMES, GridLayout

__all__ = ["encode", "encode_with_jacobian"]

BLOCK = 256
"""Points per program."""

_PRIME_Y = tl.constexpr(HASH_PRIMES[1])
_PRIME_Z = tl.constexpr(HASH_PRIMES[2])


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
        out = x.new_empty(x.shape[0], layout.n_outputs)
        _launch(_forward, x, layout, table.contiguous(), out)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, table = ctx.saved_tensors
        layout = ctx.layout
        if torch.is_grad_enabled():  # create_graph=True: somebody will differentiate again

            def reference(x: Tensor, table: Tensor) -> Tensor:
                return torch_hashgrid.encode(x, table, layout)

            return *reference_gradients(reference, (x, table), (grad,)), None
        grad = grad.contiguous()
        grad_x = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_x = x.new_zeros(x.shape)
            _launch(_backward_positions, x, layout, table.contiguous(), grad, grad_x)
        if ctx.needs_input_grad[1]:
            grad_table = table.new_zeros(table.shape)
            _launch(_backward_table, x, layout, grad_table, grad)
        return grad_x, grad_table, None


class _EncodeWithJacobian(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, layout: GridLayout) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, table)
        ctx.layout = layout
        out = x.new_empty(x.shape[0], layout.n_outputs)
        jac = x.new_empty(x.shape[0], 3, layout.n_outputs)
        _launch(_forward_jacobian, x, layout, table.contiguous(), out, jac)
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
            grad_table = table.new_zeros(table.shape)
            grads = (grad.contiguous(), grad_jac.contiguous())
            _launch(_backward_table_jacobian, x, layout, grad_table, *grads)
        return None, grad_table, None


def _launch(kernel, x: Tensor, layout: GridLayout, *tensors: Tensor) -> None:
    if x.shape[0] == 0:
        return
    with torch.cuda.device_of(x):
        kernel[(triton.cdiv(x.shape[0], BLOCK), layout.n_levels)](
            x.contiguous(),
            *tensors,
            *_level_tensors(layout, x.device),
            x.shape[0],
            layout.hash_mask,
            N_OUTPUTS=layout.n_outputs,
            F=layout.n_features,
            POINTS=BLOCK,
            # A fused x * scale + 0.5 would move indices against the other backends.
            enable_fp_fusion=False,
        )


@cache
def _level_tensors(layout: GridLayout, device: torch.device) -> tuple[Tensor, ...]:
    return (
        torch.tensor(layout.scales, dtype=torch.float32, device=device),
        torch.tensor(layout.resolutions, dtype=torch.int32, device=device),
        torch.tensor(layout.offsets, dtype=torch.int64, device=device),
        torch.tensor(layout.hashed, dtype=torch.int32, device=device),
    )


@triton.jit
def _cell(X, i, live, scale):
    """Lower corner of the cell and the position inside it."""
    px = tl.load(X + 3 * i, live, 0.0) * scale + 0.5
    py = tl.load(X + 3 * i + 1, live, 0.0) * scale + 0.5
    pz = tl.load(X + 3 * i + 2, live, 0.0) * scale + 0.5
    fx, fy, fz = tl.floor(px), tl.floor(py), tl.floor(pz)
    ix, iy, iz = fx.to(tl.uint32), fy.to(tl.uint32), fz.to(tl.uint32)
    return ix, iy, iz, px - fx, py - fy, pz - fz


@triton.jit
def _level(Scales, Resolutions, Offsets, Hashed, level):
    first = tl.load(Offsets + level)
    size = (tl.load(Offsets + level + 1) - first).to(tl.uint32)
    resolution = tl.load(Resolutions + level).to(tl.uint32)
    return tl.load(Scales + level), resolution, first, size, tl.load(Hashed + level)


@triton.jit
def _row(ix, iy, iz, CORNER: tl.constexpr, resolution, first, size, hashed, mask):
    """Table row of a corner (bit 0 of CORNER is x)."""
    x = ix + (CORNER & 1)
    y = iy + ((CORNER >> 1) & 1)
    z = iz + ((CORNER >> 2) & 1)
    in_hash = (x ^ (y * _PRIME_Y) ^ (z * _PRIME_Z)) & mask.to(tl.uint32)
    # Only a NaN position can leave a dense level; the bound keeps it from reading elsewhere.
    in_dense = tl.minimum(x + y * resolution + z * resolution * resolution, size - 1)
    return tl.where(hashed != 0, in_hash, in_dense).to(tl.int64) + first


@triton.jit
def _side(w, AT_UPPER: tl.constexpr):
    """Weight of a corner along one axis."""
    return w if AT_UPPER else 1.0 - w


@triton.jit
def _sign(AT_UPPER: tl.constexpr):
    """Direction in which a corner's weight changes along one axis."""
    return 2 * AT_UPPER - 1


@triton.jit
def _forward(
    X, Table, Out, Scales, Resolutions, Offsets, Hashed, n, mask,
    N_OUTPUTS: tl.constexpr, F: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = i < n
    scale, resolution, first, size, hashed = _level(Scales, Resolutions, Offsets, Hashed, level)
    ix, iy, iz, wx, wy, wz = _cell(X, i, live, scale)
    # Features outside, corners inside: one-dimensional blocks need no exchange between threads,
    # and the compiler merges the repeated index arithmetic.
    for f in tl.static_range(F):
        total = tl.full([POINTS], 0.0, tl.float32)
        for corner in tl.static_range(8):
            row = _row(ix, iy, iz, corner, resolution, first, size, hashed, mask)
            w = _side(wx, corner & 1) * _side(wy, (corner >> 1) & 1) * _side(wz, corner >> 2)
            total += w * tl.load(Table + row * F + f, live, 0.0)
        tl.store(Out + i * N_OUTPUTS + level * F + f, total, live)


@triton.jit
def _forward_jacobian(
    X, Table, Out, Jac, Scales, Resolutions, Offsets, Hashed, n, mask,
    N_OUTPUTS: tl.constexpr, F: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = i < n
    scale, resolution, first, size, hashed = _level(Scales, Resolutions, Offsets, Hashed, level)
    ix, iy, iz, wx, wy, wz = _cell(X, i, live, scale)
    for f in tl.static_range(F):
        total = tl.full([POINTS], 0.0, tl.float32)
        slope_x = tl.full([POINTS], 0.0, tl.float32)
        slope_y = tl.full([POINTS], 0.0, tl.float32)
        slope_z = tl.full([POINTS], 0.0, tl.float32)
        for corner in tl.static_range(8):
            row = _row(ix, iy, iz, corner, resolution, first, size, hashed, mask)
            value = tl.load(Table + row * F + f, live, 0.0)
            sx, sy, sz = _side(wx, corner & 1), _side(wy, (corner >> 1) & 1), _side(wz, corner >> 2)
            total += sx * sy * sz * value
            slope_x += sy * sz * value * _sign(corner & 1)
            slope_y += sx * sz * value * _sign((corner >> 1) & 1)
            slope_z += sx * sy * value * _sign(corner >> 2)
        column = level * F + f
        tl.store(Out + i * N_OUTPUTS + column, total, live)
        out = Jac + i * (3 * N_OUTPUTS) + column
        tl.store(out, slope_x * scale, live)
        tl.store(out + N_OUTPUTS, slope_y * scale, live)
        tl.store(out + 2 * N_OUTPUTS, slope_z * scale, live)


@triton.jit
def _backward_table(
    X, TableGrad, Grad, Scales, Resolutions, Offsets, Hashed, n, mask,
    N_OUTPUTS: tl.constexpr, F: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = i < n
    scale, resolution, first, size, hashed = _level(Scales, Resolutions, Offsets, Hashed, level)
    ix, iy, iz, wx, wy, wz = _cell(X, i, live, scale)
    for f in tl.static_range(F):
        g = tl.load(Grad + i * N_OUTPUTS + level * F + f, live, 0.0)
        for corner in tl.static_range(8):
            row = _row(ix, iy, iz, corner, resolution, first, size, hashed, mask)
            w = _side(wx, corner & 1) * _side(wy, (corner >> 1) & 1) * _side(wz, corner >> 2)
            tl.atomic_add(TableGrad + row * F + f, w * g, live, sem="relaxed")


@triton.jit
def _backward_table_jacobian(
    X, TableGrad, Grad, GradJac, Scales, Resolutions, Offsets, Hashed, n, mask,
    N_OUTPUTS: tl.constexpr, F: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """One scatter for both outputs: a corner gets ``w_c g + sum_k dw_c/dx_k g_k``."""
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = i < n
    scale, resolution, first, size, hashed = _level(Scales, Resolutions, Offsets, Hashed, level)
    ix, iy, iz, wx, wy, wz = _cell(X, i, live, scale)
    for f in tl.static_range(F):
        column = level * F + f
        g = tl.load(Grad + i * N_OUTPUTS + column, live, 0.0)
        slopes = GradJac + i * (3 * N_OUTPUTS) + column
        gx = tl.load(slopes, live, 0.0) * scale
        gy = tl.load(slopes + N_OUTPUTS, live, 0.0) * scale
        gz = tl.load(slopes + 2 * N_OUTPUTS, live, 0.0) * scale
        for corner in tl.static_range(8):
            row = _row(ix, iy, iz, corner, resolution, first, size, hashed, mask)
            sx, sy, sz = _side(wx, corner & 1), _side(wy, (corner >> 1) & 1), _side(wz, corner >> 2)
            share = sx * sy * sz * g + sy * sz * gx * _sign(corner & 1)
            share += sx * sz * gy * _sign((corner >> 1) & 1) + sx * sy * gz * _sign(corner >> 2)
            tl.atomic_add(TableGrad + row * F + f, share, live, sem="relaxed")


@triton.jit
def _backward_positions(
    X, Table, Grad, GradX, Scales, Resolutions, Offsets, Hashed, n, mask,
    N_OUTPUTS: tl.constexpr, F: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    level = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = i < n
    scale, resolution, first, size, hashed = _level(Scales, Resolutions, Offsets, Hashed, level)
    ix, iy, iz, wx, wy, wz = _cell(X, i, live, scale)
    slope_x = tl.full([POINTS], 0.0, tl.float32)
    slope_y = tl.full([POINTS], 0.0, tl.float32)
    slope_z = tl.full([POINTS], 0.0, tl.float32)
    for f in tl.static_range(F):
        g = tl.load(Grad + i * N_OUTPUTS + level * F + f, live, 0.0) * scale
        for corner in tl.static_range(8):
            row = _row(ix, iy, iz, corner, resolution, first, size, hashed, mask)
            along = g * tl.load(Table + row * F + f, live, 0.0)
            sx, sy, sz = _side(wx, corner & 1), _side(wy, (corner >> 1) & 1), _side(wz, corner >> 2)
            slope_x += sy * sz * along * _sign(corner & 1)
            slope_y += sx * sz * along * _sign((corner >> 1) & 1)
            slope_z += sx * sy * along * _sign(corner >> 2)
    tl.atomic_add(GradX + 3 * i, slope_x, live, sem="relaxed")
    tl.atomic_add(GradX + 3 * i + 1, slope_y, live, sem="relaxed")
    tl.atomic_add(GradX + 3 * i + 2, slope_z, live, sem="relaxed")
