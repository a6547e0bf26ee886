"""Values of a field on a regular grid or at many points, in bounded memory and without gradients.

density = sample_grid(field.density, lower, upper, 64)  # [65, 65, 65], x slowest, on the CPU
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["evaluate_in_chunks", "sample_grid"]

CHUNK_POINTS = 1 << 18


def sample_grid(
    function: Callable[[Tensor], Tensor],
    lower: Float[Tensor, "3"],
    upper: Float[Tensor, "3"],
    resolution: int,
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "r r r"]:
    """Evaluate a field at the ``(resolution + 1)^3`` grid points of a box, x slowest, on the
    CPU."""
    n = resolution + 1
    steps = [torch.linspace(float(a), float(b), n) for a, b in zip(lower, upper, strict=True)]
    values = torch.empty(n, n, n)
    slab = max(1, CHUNK_POINTS // (n * n))
    with torch.no_grad():
        for start in range(0, n, slab):
            axes = (steps[0][start : start + slab], steps[1], steps[2])
            points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
            result = function(points.reshape(-1, 3).to(device))
            values[start : start + slab] = result.float().cpu().reshape(points.shape[:3])
    return values


def evaluate_in_chunks(
    function: Callable[[Tensor], Tensor],
    points: Float[Tensor, "n 3"],
    *,
    device: torch.device | str = "cpu",
) -> Float[Tensor, " n"]:
    """Evaluate a field at points on ``device``; the result is on the CPU."""
    with torch.no_grad():
        chunks = [function(part.to(device)).float().cpu() for part in points.split(CHUNK_POINTS)]
    return torch.cat(chunks)
