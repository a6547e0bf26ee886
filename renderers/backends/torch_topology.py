"""The edges of a mesh in plain PyTorch: half-edges, sorted and paired."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["edge_table"]


def edge_table(tri: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``vertices, faces, opposite [E, 2]`` and ``consistent [E]`` of faces ``[F, 3]``."""
    start, end = tri.reshape(-1), tri.roll(-1, 1).reshape(-1)
    first, second = _pair_half_edges(torch.minimum(start, end), torch.maximum(start, end))
    boundary = second < 0
    second = torch.where(boundary, first, second)
    third = tri.roll(-2, 1).reshape(-1)
    vertices = torch.stack([start[first], end[first]], 1)
    opposite = torch.stack([third[first], third[second]], 1)
    face = torch.where(boundary, -1, torch.div(second, 3, rounding_mode="floor"))
    faces = torch.stack([torch.div(first, 3, rounding_mode="floor"), face], 1)
    return vertices, faces, opposite, boundary | (start[first] == end[second])


def _pair_half_edges(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Half-edges of each edge by (low, high) vertex; the second is -1 on a boundary."""
    if len(low) == 0:
        return low, low
    key, order = torch.sort(low * (int(high.max()) + 1) + high, stable=True)
    follows = torch.zeros_like(key, dtype=torch.bool)
    follows[1:] = key[1:] == key[:-1]
    # The place of a half-edge among its equals: 0 and 1 are one edge, 2 and 3 the next.
    index = torch.arange(len(key), device=key.device)
    place = index - torch.cummax(torch.where(follows, 0, index), 0).values
    opens = (place % 2 == 0).nonzero().squeeze(1)
    following = (opens + 1).clamp(max=len(key) - 1)
    paired = follows[following] & (following > opens)
    return order[opens], torch.where(paired, order[following], -1)
