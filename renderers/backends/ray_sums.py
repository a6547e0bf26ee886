"""Running sums along packed rays, in which a value that is no number harms its own ray alone.

One running sum over all rays, less its value where a ray begins, is the fastest way. It needs
float64, since the difference of two large sums would otherwise lose the small ones. Through it a
NaN or an infinity would reach every later ray, and MPS has no float64: in both cases each ray is
summed by itself, in steps that double (Hillis and Steele, "Data parallel algorithms", 1986).

    optical_before = sum_before(sigma * (t_ends - t_starts), ray_indices, packed_info)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["sum_before", "widest_float"]


def widest_float(device: torch.device) -> torch.dtype:
    """The longest floating-point type of a device: float64, but on MPS float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def sum_before(
    values: Float[Tensor, "m"], ray_indices: Int[Tensor, "m"], packed_info: Int[Tensor, "n 2"]
) -> Float[Tensor, "m"]:
    """Sum of the values that come before each sample on its ray, in ``widest_float``.

    Twice differentiable in ``values``. Behind an infinity the sum is infinite, behind a NaN it is
    NaN, both on that ray only.

    Args:
        values: one per sample, ray after ray.
        ray_indices: the ray of each sample, ascending.
        packed_info: first sample and number of samples of each ray.
    """
    wide = values.to(widest_float(values.device))
    if not len(wide):
        return wide
    first = packed_info[:, 0][ray_indices]
    if wide.dtype == torch.float64:
        running = torch.cumsum(wide, dim=0)
        if bool(running[-1].isfinite()):  # as any value that is not would have made it
            before = running - values
            return before - before[first]
    return _ray_by_ray(wide, torch.arange(len(wide), device=wide.device) - first)


def _ray_by_ray(values: Float[Tensor, "m"], slot: Int[Tensor, "m"]) -> Float[Tensor, "m"]:
    """The same without a sum that crosses from one ray to the next; ``slot`` counts on each ray."""
    total, reach, longest = _earlier(values, slot, 1), 1, int(slot.max())
    while reach < longest:
        total = total + _earlier(total, slot, reach)
        reach *= 2
    return total


def _earlier(values: Tensor, slot: Tensor, steps: int) -> Tensor:
    """The value so many samples before on the same ray, 0 where there is none."""
    # Chosen, not multiplied by 0, which would let a NaN through, and its gradient back.
    return torch.where(slot >= steps, F.pad(values[:-steps], (steps, 0)), 0.0)
