"""Visibility on CUDA: a Triton z-buffer with one 64-bit atomic minimum per covered pixel.

The bounding boxes of all faces are cut into runs of up to ``RUN`` pixels, and a program tests a
block of runs. There is no loop, so one large face costs no more than many small ones. Depth and
face number travel in one integer whose order is that of the depths, then of the numbers; the
minimum does not depend on the order of the programs, so pictures are reproducible bit for bit.

Exact arithmetic (no fused multiply-add, rounded division) keeps edge functions antisymmetric, so
that neighbouring faces leave no holes, and equals ``torch_raster`` bit for bit.

The kernel also runs without a GPU in Triton's interpreter (``TRITON_INTERPRET=1``, slow).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from renderers.backends.torch_raster import drawn_faces

__all__ = ["visibility"]

RUN = 16
"""Pixels of one face that one row of a program tests."""
RUNS_PER_PROGRAM = 16
EMPTY = 2**62


@triton.jit
def _draw(
    corners,
    box,
    view,
    face,
    run_face,
    run_start,
    nearest,
    n_runs,
    height,
    width,
    RUNS: tl.constexpr,
    LENGTH: tl.constexpr,
):
    run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)
    exists = run < n_runs
    item = tl.load(run_face + run, mask=exists, other=0)
    first = tl.load(run_start + run, mask=exists, other=0)
    left = tl.load(box + 4 * item)[:, None]
    top = tl.load(box + 4 * item + 1)[:, None]
    columns = tl.load(box + 4 * item + 2)[:, None]
    rows = tl.load(box + 4 * item + 3)[:, None]
    offset = first[:, None] + tl.arange(0, LENGTH)[None, :]
    row = offset // columns
    column = left + offset - row * columns
    inside = exists[:, None] & (row < rows)
    row += top
    px = column.to(tl.float32) + 0.5
    py = row.to(tl.float32) + 0.5
    ax = tl.load(corners + 9 * item)[:, None]
    ay = tl.load(corners + 9 * item + 1)[:, None]
    az = tl.load(corners + 9 * item + 2)[:, None]
    bx = tl.load(corners + 9 * item + 3)[:, None]
    by = tl.load(corners + 9 * item + 4)[:, None]
    bz = tl.load(corners + 9 * item + 5)[:, None]
    cx = tl.load(corners + 9 * item + 6)[:, None]
    cy = tl.load(corners + 9 * item + 7)[:, None]
    cz = tl.load(corners + 9 * item + 8)[:, None]
    sign = tl.where((bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0, 1.0, -1.0)
    e0 = ((bx - px) * (cy - py) - (by - py) * (cx - px)) * sign
    e1 = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) * sign
    e2 = ((ax - px) * (by - py) - (ay - py) * (bx - px)) * sign
    total = e0 + e1 + e2
    inside &= (e0 >= 0) & (e1 >= 0) & (e2 >= 0) & (total > 0)
    z = tl.div_rn(e0 * az + e1 * bz + e2 * cz, tl.where(total > 0, total, 1.0))
    inside &= (z >= -1) & (z < 1)
    # Bits of a float as an integer of the same order: negative values have their bits turned.
    bits = z.to(tl.int32, bitcast=True)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    number = (tl.load(face + item) + 1).to(tl.int64)[:, None]
    pixel = (tl.load(view + item)[:, None] * height + row) * width + column
    tl.atomic_min(nearest + pixel, (ordered << 32) | number, mask=inside, sem="relaxed")


def visibility(pos_clip: Tensor, tri: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """``(tri_id, zw)``, both ``[b, H, W]``, of positions ``[b, V, 4]`` and faces ``[F, 3]``."""
    n_views = pos_clip.shape[0]
    faces = drawn_faces(pos_clip, tri, height, width)
    nearest = torch.full((n_views, height, width), EMPTY, dtype=torch.int64, device=pos_clip.device)
    n_runs = torch.div(faces.count + RUN - 1, RUN, rounding_mode="floor")
    run_face = torch.repeat_interleave(
        torch.arange(len(n_runs), dtype=torch.int32, device=tri.device), n_runs
    )
    if len(run_face) > 0:
        before = (torch.cumsum(n_runs, 0) - n_runs)[run_face.long()]
        run_start = (torch.arange(len(run_face), device=tri.device) - before) * RUN
        with torch.cuda.device_of(pos_clip):
            _draw[(triton.cdiv(len(run_face), RUNS_PER_PROGRAM),)](
                faces.corners.contiguous(),
                torch.cat([faces.low, faces.extent], 1).int().contiguous(),
                faces.view.contiguous(),
                faces.face.contiguous(),
                run_face,
                run_start.int().contiguous(),
                nearest,
                len(run_face),
                height,
                width,
                RUNS=RUNS_PER_PROGRAM,
                LENGTH=RUN,
                enable_fp_fusion=False,
            )
    return _unpack(nearest)


def _unpack(nearest: Tensor) -> tuple[Tensor, Tensor]:
    hit = nearest < EMPTY
    ordered = (nearest >> 32).int()
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    zw = torch.where(hit, bits.view(torch.float32), 1.0)
    return torch.where(hit, nearest & 0xFFFFFFFF, 0).int(), zw
