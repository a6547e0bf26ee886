"""Dense weight changes as low-rank ones, and low-rank ones with a smaller rank.

The truncated singular value decomposition is the best approximation of a rank (Eckart, Young). A
product of small factors is never multiplied out: with the QR decompositions ``up = Q1 R1`` and
``down^T = Q2 R2``, only ``R1 R2^T`` of the old rank is decomposed. The singular values are shared
between both factors: ``up = U sqrt(S)``, ``down = sqrt(S) V^T``.

    delta = truncated_delta(tuned_weight - base_weight, rank=16)
    smaller = resized_delta(delta, rank=4)
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.lora_deltas import LoraDelta
from renderers.errors import StudioError

__all__ = ["kept_energy", "plain_delta", "resized_delta", "truncated_delta"]


def truncated_delta(weight: Float[Tensor, "out ..."], rank: int) -> LoraDelta:
    """The best change of a rank for a dense one of a linear or convolution layer.

    Args:
        weight: [out, in] or [out, in, kernel, kernel].
        rank: wanted rank; less where the weight has fewer rows or columns.
    """
    check_rank(rank)
    left, values, right = torch.linalg.svd(weight.float().flatten(1), full_matrices=False)
    return _from_decomposition(left, values, right, rank, weight.shape[1:])


def resized_delta(delta: LoraDelta, rank: int) -> LoraDelta:
    """The best approximation of a delta with a rank, or the delta itself if it has no more.

    The magnitude of a DoRA is kept as it is.
    """
    check_rank(rank)
    if rank >= delta.rank:
        return delta
    left_basis, left_part = torch.linalg.qr(delta.up.float().flatten(1))
    right_basis, right_part = torch.linalg.qr(delta.down.float().flatten(1).T)
    core = delta.scale * left_part @ right_part.T
    left, values, right = torch.linalg.svd(core, full_matrices=False)
    return _from_decomposition(
        left_basis @ left, values, right @ right_basis.T, rank, delta.shape[1:], delta.magnitude
    )


def plain_delta(weight: Float[Tensor, "out ..."]) -> LoraDelta:
    """A dense change as it is: one factor is the identity, of the full rank."""
    flat = weight.flatten(1)
    rows, columns = flat.shape
    up, down = (torch.eye(rows), flat) if rows <= columns else (flat, torch.eye(columns))
    rank = min(rows, columns)
    return shaped_delta(up.to(flat), down.to(flat), weight.shape[1:], alpha=float(rank))


def kept_energy(weight: Float[Tensor, "out ..."], delta: LoraDelta) -> float:
    """How much of a dense change's square a delta holds, 0 to 1."""
    total = float(weight.float().square().sum())
    missed = float((weight.float() - delta.weight()).square().sum())
    return 1.0 - missed / total if total > 0.0 else 1.0


def shaped_delta(
    up: Float[Tensor, "out rank"],
    down: Float[Tensor, "rank columns"],
    inputs: torch.Size,
    *,
    alpha: float,
    magnitude: Tensor | None = None,
) -> LoraDelta:
    """A delta of flat factors for a layer whose weight is [out, *inputs]."""
    if len(inputs) > 1:
        up = up.reshape(*up.shape, 1, 1)
    return LoraDelta(down.reshape(down.shape[0], *inputs), up, alpha, magnitude)


def check_rank(rank: int) -> None:
    """Refuse ranks below 1."""
    if rank < 1:
        raise StudioError(f"The rank of a LoRA is {rank}. Expected a whole number from 1.")


def _from_decomposition(
    left: Tensor,
    values: Tensor,
    right: Tensor,
    rank: int,
    inputs: torch.Size,
    magnitude: Tensor | None = None,
) -> LoraDelta:
    rank = min(rank, values.shape[0])
    root = values[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    return shaped_delta(up, down, inputs, alpha=float(rank), magnitude=magnitude)
