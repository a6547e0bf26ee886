"""Rasterisation kernels for the CPU: visibility, perspective-correct weights, interpolation.

A z-buffer over bands of rows: each band belongs to one thread, visits the faces in order and
keeps the nearest, so the picture does not depend on the number of threads. Backward passes that
scatter to vertices write to one private buffer per band, with the number of bands given by the
shapes alone, and add the buffers up in order: gradients are bit-identical from run to run.

The arithmetic follows ``torch_raster`` operation by operation (no fused multiply-add), so both
give the same triangle ids and depths bit for bit. Callers hold no lock; this module does.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from renderers.backends import torch_raster
from renderers.backends.autograd import reference_gradients
from renderers.backends.numba_runtime import KERNEL_LOCK

__all__ = ["barycentrics", "interpolate", "visibility"]

F32 = np.float32
ZERO, HALF, ONE, TWO = F32(0.0), F32(0.5), F32(1.0), F32(2.0)
MIN_W, TINY = F32(torch_raster.MIN_W), F32(torch_raster.TINY)
ROWS_PER_BAND = 8
MAX_BANDS = 32
PIXELS_PER_BUFFER = 32768
MAX_BUFFERS = 8

_KERNEL = {
    "parallel": True,
    "fastmath": False,
    "cache": True,
    "error_model": "numpy",
    "boundscheck": False,
}


@njit(**_KERNEL)
def _project_vertices(pos, height, width, screen):
    """Write screen x, y (pixels) and z/w; x is infinite for vertices that no face may use."""
    n_views, n_vertices = screen.shape[0], screen.shape[1]
    for i in prange(n_views * n_vertices):
        b, v = i // n_vertices, i % n_vertices
        w = pos[b, v, 3]
        screen[b, v, 0] = F32(np.inf)
        if w > MIN_W:  # false for NaN
            x = (pos[b, v, 0] / w * HALF + HALF) * F32(width)
            y = (pos[b, v, 1] / w * HALF + HALF) * F32(height)
            z = pos[b, v, 2] / w
            if np.isfinite(x + y + z):
                screen[b, v, 0], screen[b, v, 1], screen[b, v, 2] = x, y, z


@njit(**_KERNEL)
def _box_faces(screen, tri, height, width, box):
    """Write the box of pixel centres that each face may cover: left, right, top, bottom."""
    n_views, n_faces = box.shape[0], box.shape[1]
    for i in prange(n_views * n_faces):
        b, f = i // n_faces, i % n_faces
        i0, i1, i2 = tri[f, 0], tri[f, 1], tri[f, 2]
        ax, bx, cx = screen[b, i0, 0], screen[b, i1, 0], screen[b, i2, 0]
        x0, x1 = min(min(ax, bx), cx), max(max(ax, bx), cx)
        box[b, f, 0], box[b, f, 1], box[b, f, 2], box[b, f, 3] = 1, 0, 1, 0
        if x1 < F32(np.inf):
            ay, by, cy = screen[b, i0, 1], screen[b, i1, 1], screen[b, i2, 1]
            y0, y1 = min(min(ay, by), cy), max(max(ay, by), cy)
            # Clamped as floats: a corner far outside must not overflow the integer.
            box[b, f, 0] = int(min(max(np.ceil(x0 - HALF), ZERO), F32(width)))
            box[b, f, 1] = int(max(min(np.floor(x1 - HALF), F32(width - 1)), -ONE))
            box[b, f, 2] = int(min(max(np.ceil(y0 - HALF), ZERO), F32(height)))
            box[b, f, 3] = int(max(min(np.floor(y1 - HALF), F32(height - 1)), -ONE))


@njit(**_KERNEL)
def _count_faces(box, rows, count):
    """Number of faces that reach into each band of rows, per view."""
    n_views, n_faces = box.shape[0], box.shape[1]
    for b in prange(n_views):
        for f in range(n_faces):
            if box[b, f, 0] <= box[b, f, 1] and box[b, f, 2] <= box[b, f, 3]:
                for band in range(box[b, f, 2] // rows, box[b, f, 3] // rows + 1):
                    count[b, band] += 1


@njit(**_KERNEL)
def _list_faces(box, rows, cursor, members):
    """Write the faces of each band, in order, from the band's cursor on."""
    n_views, n_faces = box.shape[0], box.shape[1]
    for b in prange(n_views):
        for f in range(n_faces):
            if box[b, f, 0] <= box[b, f, 1] and box[b, f, 2] <= box[b, f, 3]:
                for band in range(box[b, f, 2] // rows, box[b, f, 3] // rows + 1):
                    members[cursor[b, band]] = f
                    cursor[b, band] += 1


@njit(**_KERNEL)
def _fill_bands(screen, tri, box, rows, start, members, tri_id, zw):
    """Z-buffer: nearest face of each pixel centre; of equal depths the lowest face wins."""
    n_views, height, width = zw.shape
    n_bands = (len(start) - 1) // n_views
    for i in prange(n_views * n_bands):
        b, first = i // n_bands, (i % n_bands) * rows
        last = min(height, first + rows) - 1
        for y in range(first, last + 1):
            for x in range(width):
                tri_id[b, y, x] = 0
                zw[b, y, x] = ONE
        for k in range(start[i], start[i + 1]):
            f = members[k]
            top, bottom = max(box[b, f, 2], first), min(box[b, f, 3], last)
            left, right = box[b, f, 0], box[b, f, 1]
            i0, i1, i2 = tri[f, 0], tri[f, 1], tri[f, 2]
            ax, ay, az = screen[b, i0, 0], screen[b, i0, 1], screen[b, i0, 2]
            bx, by, bz = screen[b, i1, 0], screen[b, i1, 1], screen[b, i1, 2]
            cx, cy, cz = screen[b, i2, 0], screen[b, i2, 1], screen[b, i2, 2]
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if area == ZERO:
                continue
            sign = ONE if area > ZERO else -ONE
            for y in range(top, bottom + 1):
                py = F32(y) + HALF
                for x in range(left, right + 1):
                    px = F32(x) + HALF
                    # Unnormalised edge functions are exact negations of the neighbour's across
                    # a shared edge, so no pixel centre falls between two faces.
                    e0 = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * sign
                    e1 = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * sign
                    e2 = ((ax - px) * (by - py) - (ay - py) * (bx - px)) * sign
                    if e0 >= ZERO and e1 >= ZERO and e2 >= ZERO:
                        total = e0 + e1 + e2
                        if total > ZERO:
                            z = (e0 * az + e1 * bz + e2 * cz) / total
                            if z < zw[b, y, x] and z >= -ONE:
                                zw[b, y, x] = z
                                tri_id[b, y, x] = f + 1


@njit(inline="always", error_model="numpy")
def _edge_functions(pos, b, i0, i1, i2, px, py):
    """Clip-space edge functions of the pixel with ndc centre (px, py), and the vectors they use."""
    ax, ay = pos[b, i0, 0] - px * pos[b, i0, 3], pos[b, i0, 1] - py * pos[b, i0, 3]
    bx, by = pos[b, i1, 0] - px * pos[b, i1, 3], pos[b, i1, 1] - py * pos[b, i1, 3]
    cx, cy = pos[b, i2, 0] - px * pos[b, i2, 3], pos[b, i2, 1] - py * pos[b, i2, 3]
    e0, e1, e2 = bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx
    total = e0 + e1 + e2
    inverse = ONE / total if total != ZERO else ZERO
    return e0 * inverse, e1 * inverse, e2 * inverse, inverse, ax, ay, bx, by, cx, cy


@njit(inline="always", error_model="numpy")
def _clamp01(value):
    return min(max(value, ZERO), ONE) + TINY


@njit(**_KERNEL)
def _weights_forward(pos, tri, tri_id, bary):
    n_views, height, width = tri_id.shape
    for i in prange(n_views * height):
        b, y = i // height, i % height
        py = (F32(y) + HALF) * (TWO / F32(height)) - ONE
        for x in range(width):
            f = tri_id[b, y, x] - 1
            bary[b, y, x, 0] = ZERO
            bary[b, y, x, 1] = ZERO
            if f < 0:
                continue
            px = (F32(x) + HALF) * (TWO / F32(width)) - ONE
            edge = _edge_functions(pos, b, tri[f, 0], tri[f, 1], tri[f, 2], px, py)
            c0, c1, c2 = _clamp01(edge[0]), _clamp01(edge[1]), _clamp01(edge[2])
            total = c0 + c1 + c2
            bary[b, y, x, 0] = c0 / total
            bary[b, y, x, 1] = c1 / total


@njit(**_KERNEL)
def _weights_backward(pos, tri, tri_id, grad, n_buffers, grad_pos):
    n_views, height, width = tri_id.shape
    rows = (height + n_buffers - 1) // n_buffers
    for i in prange(n_views * n_buffers):
        b, k = i // n_buffers, i % n_buffers
        for y in range(k * rows, min(height, (k + 1) * rows)):
            py = (F32(y) + HALF) * (TWO / F32(height)) - ONE
            for x in range(width):
                f = tri_id[b, y, x] - 1
                if f < 0:
                    continue
                px = (F32(x) + HALF) * (TWO / F32(width)) - ONE
                i0, i1, i2 = tri[f, 0], tri[f, 1], tri[f, 2]
                edge = _edge_functions(pos, b, i0, i1, i2, px, py)
                u0, u1, u2, inverse, ax, ay, bx, by, cx, cy = edge
                c0, c1, c2 = _clamp01(u0), _clamp01(u1), _clamp01(u2)
                total = c0 + c1 + c2
                # Back through the renormalisation, the clamp, and the division by the sum.
                g0, g1 = grad[b, y, x, 0], grad[b, y, x, 1]
                mean = (g0 * c0 + g1 * c1) / total
                d0 = (g0 - mean) / total if ZERO <= u0 <= ONE else ZERO
                d1 = (g1 - mean) / total if ZERO <= u1 <= ONE else ZERO
                d2 = -mean / total if ZERO <= u2 <= ONE else ZERO
                mean = d0 * u0 + d1 * u1 + d2 * u2
                d0, d1, d2 = (d0 - mean) * inverse, (d1 - mean) * inverse, (d2 - mean) * inverse
                gx, gy = d2 * by - d1 * cy, d1 * cx - d2 * bx
                grad_pos[b, k, i0, 0] += gx
                grad_pos[b, k, i0, 1] += gy
                grad_pos[b, k, i0, 3] -= px * gx + py * gy
                gx, gy = d0 * cy - d2 * ay, d2 * ax - d0 * cx
                grad_pos[b, k, i1, 0] += gx
                grad_pos[b, k, i1, 1] += gy
                grad_pos[b, k, i1, 3] -= px * gx + py * gy
                gx, gy = d1 * ay - d0 * by, d0 * bx - d1 * ax
                grad_pos[b, k, i2, 0] += gx
                grad_pos[b, k, i2, 1] += gy
                grad_pos[b, k, i2, 3] -= px * gx + py * gy


@njit(**_KERNEL)
def _interpolate_forward(attr, tri, tri_id, bary, out):
    n_views, height, width = tri_id.shape
    n_channels = attr.shape[2]
    shared = attr.shape[0] == 1
    for i in prange(n_views * height):
        b, y = i // height, i % height
        a = 0 if shared else b
        for x in range(width):
            f = tri_id[b, y, x] - 1
            if f < 0:
                for c in range(n_channels):
                    out[b, y, x, c] = ZERO
                continue
            i0, i1, i2 = tri[f, 0], tri[f, 1], tri[f, 2]
            u, v = bary[b, y, x, 0], bary[b, y, x, 1]
            w = ONE - u - v
            for c in range(n_channels):
                out[b, y, x, c] = u * attr[a, i0, c] + v * attr[a, i1, c] + w * attr[a, i2, c]


@njit(**_KERNEL)
def _interpolate_grad_bary(attr, tri, tri_id, grad, grad_bary):
    n_views, height, width = tri_id.shape
    n_channels = attr.shape[2]
    shared = attr.shape[0] == 1
    for i in prange(n_views * height):
        b, y = i // height, i % height
        a = 0 if shared else b
        for x in range(width):
            f = tri_id[b, y, x] - 1
            gu, gv = ZERO, ZERO
            if f >= 0:
                i0, i1, i2 = tri[f, 0], tri[f, 1], tri[f, 2]
                for c in range(n_channels):
                    g, last = grad[b, y, x, c], attr[a, i2, c]
                    gu += g * (attr[a, i0, c] - last)
                    gv += g * (attr[a, i1, c] - last)
            grad_bary[b, y, x, 0] = gu
            grad_bary[b, y, x, 1] = gv


@njit(**_KERNEL)
def _interpolate_grad_attr(tri, tri_id, bary, grad, n_buffers, grad_attr):
    n_views, height, width = tri_id.shape
    n_channels = grad.shape[3]
    rows = (height + n_buffers - 1) // n_buffers
    for i in prange(n_views * n_buffers):
        b, k = i // n_buffers, i % n_buffers
        for y in range(k * rows, min(height, (k + 1) * rows)):
            for x in range(width):
                f = tri_id[b, y, x] - 1
                if f < 0:
                    continue
                i0, i1, i2 = tri[f, 0], tri[f, 1], tri[f, 2]
                u, v = bary[b, y, x, 0], bary[b, y, x, 1]
                w = ONE - u - v
                for c in range(n_channels):
                    g = grad[b, y, x, c]
                    grad_attr[b, k, i0, c] += g * u
                    grad_attr[b, k, i1, c] += g * v
                    grad_attr[b, k, i2, c] += g * w


def _n_buffers(height: int, width: int) -> int:
    return min(max(height * width // PIXELS_PER_BUFFER, 1), MAX_BUFFERS, height)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


class _Barycentrics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pos_clip, tri, tri_id):
        bary = np.empty((*tri_id.shape, 2), np.float32)
        with KERNEL_LOCK:
            _weights_forward(_numpy(pos_clip), _numpy(tri), _numpy(tri_id), bary)
        ctx.save_for_backward(pos_clip, tri, tri_id)
        return torch.from_numpy(bary)

    @staticmethod
    def backward(ctx, grad_bary):
        pos_clip, tri, tri_id = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: somebody will differentiate again

            def reference(pos_clip: Tensor) -> Tensor:
                return torch_raster.barycentrics(pos_clip, tri, tri_id)

            return *reference_gradients(reference, (pos_clip,), (grad_bary,)), None, None
        n_views, height, width = tri_id.shape
        n_buffers = _n_buffers(height, width)
        buffers = np.zeros((n_views, n_buffers, pos_clip.shape[1], 4), np.float32)
        with KERNEL_LOCK:
            _weights_backward(
                _numpy(pos_clip), _numpy(tri), _numpy(tri_id), _numpy(grad_bary), n_buffers, buffers
            )
        return torch.from_numpy(buffers.sum(axis=1)), None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, attr, tri, tri_id, bary):
        out = np.empty((*tri_id.shape, attr.shape[2]), np.float32)
        with KERNEL_LOCK:
            _interpolate_forward(_numpy(attr), _numpy(tri), _numpy(tri_id), _numpy(bary), out)
        ctx.save_for_backward(attr, tri, tri_id, bary)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, grad_out):
        attr, tri, tri_id, bary = ctx.saved_tensors
        if torch.is_grad_enabled():

            def reference(attr: Tensor, bary: Tensor) -> Tensor:
                return torch_raster.interpolate(attr, tri, tri_id, bary)

            grad_attr, grad_bary = reference_gradients(reference, (attr, bary), (grad_out,))
            return grad_attr, None, None, grad_bary
        faces, ids, grad = _numpy(tri), _numpy(tri_id), _numpy(grad_out)
        grad_attr = grad_bary = None
        with KERNEL_LOCK:
            if ctx.needs_input_grad[0]:
                n_views, height, width = ids.shape
                n_buffers = _n_buffers(height, width)
                buffers = np.zeros((n_views, n_buffers, *attr.shape[1:]), np.float32)
                _interpolate_grad_attr(faces, ids, _numpy(bary), grad, n_buffers, buffers)
                total = buffers.sum(axis=1)
                shared = attr.shape[0] == 1
                grad_attr = torch.from_numpy(total.sum(axis=0, keepdims=True) if shared else total)
            if ctx.needs_input_grad[3]:
                weights = np.empty((*ids.shape, 2), np.float32)
                _interpolate_grad_bary(_numpy(attr), faces, ids, grad, weights)
                grad_bary = torch.from_numpy(weights)
        return grad_attr, None, None, grad_bary


def visibility(pos_clip: Tensor, tri: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """``(tri_id, zw)``, both ``[b, H, W]``, of positions ``[b, V, 4]`` and faces ``[F, 3]``."""
    n_views, n_faces = pos_clip.shape[0], tri.shape[0]
    screen = np.empty((*pos_clip.shape[:2], 3), np.float32)
    faces = _numpy(tri)
    box = np.empty((n_views, n_faces, 4), np.int32)
    tri_id = np.empty((n_views, height, width), np.int32)
    zw = np.empty((n_views, height, width), np.float32)
    rows = max(ROWS_PER_BAND, -(-height // MAX_BANDS))
    count = np.zeros((n_views, -(-height // rows)), np.int64)
    start = np.zeros(count.size + 1, np.int64)
    with KERNEL_LOCK:
        _project_vertices(_numpy(pos_clip), height, width, screen)
        _box_faces(screen, faces, height, width, box)
        _count_faces(box, rows, count)
        np.cumsum(count.reshape(-1), out=start[1:])
        members = np.empty(start[-1], np.int32)
        _list_faces(box, rows, start[:-1].reshape(count.shape).copy(), members)
        _fill_bands(screen, faces, box, rows, start, members, tri_id, zw)
    return torch.from_numpy(tri_id), torch.from_numpy(zw)


def barycentrics(pos_clip: Tensor, tri: Tensor, tri_id: Tensor) -> Tensor:
    """Perspective-correct weights ``[b, H, W, 2]`` of corners 0 and 1, from clip positions."""
    return _Barycentrics.apply(pos_clip, tri, tri_id)


def interpolate(attr: Tensor, tri: Tensor, tri_id: Tensor, bary: Tensor) -> Tensor:
    """Attributes ``[1 or b, V, C]`` at every pixel, ``[b, H, W, C]``; zero on the background."""
    return _Interpolate.apply(attr, tri, tri_id, bary)
