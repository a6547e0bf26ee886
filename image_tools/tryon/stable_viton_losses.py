"""Attention total variation (StableVITON, arXiv 2312.01725, Eq. 5): garments are bent smoothly.

The place that each pixel looks at is the mean of the garment's places under its attention,

    F_i = sum_j P_ij (row_j, column_j)

in pixels of the block's grid, P averaged over heads. Inside the garment as it is worn, neighbours
should look at neighbours:

    L = sum |F_below - F| M / sum M + sum |F_right - F| M / sum M,   M: both pixels in the garment

For P the identity it is 2: one step each way. It is 0 only where all look at one place.

    with watching(net.warps, (4,)) as seen:
        output = net(sample, t, tokens)
    loss = attention_variation(seen[4].places(), worn_mask)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.precision import full_precision
from image_tools.tryon.stable_viton_nets import WarpBlocks

__all__ = ["SeenAttention", "attention_variation", "expected_places", "watching"]


@dataclass(frozen=True)
class SeenAttention:
    """What went into the cross-attention of a warping block."""

    layer: nn.Module
    hidden: Float[Tensor, "rows n c"]
    context: Float[Tensor, "rows m d"]
    size: tuple[int, int]
    """Rows and columns of its grid, of pixels and of the garment alike."""

    def probabilities(self) -> Float[Tensor, "rows n m"]:
        """Attention, averaged over heads."""
        attn = self.layer
        query, key = (
            part.unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(self.hidden), attn.to_k(self.context))
        )
        logits = query @ key.transpose(2, 3) * attn.scale
        return logits.float().softmax(dim=-1).mean(dim=1)

    def places(self) -> Float[Tensor, "rows h w 2"]:
        """The place in the garment that each pixel looks at."""
        return expected_places(self.probabilities(), self.size)


def expected_places(
    attention: Float[Tensor, "rows n n"], size: tuple[int, int]
) -> Float[Tensor, "rows h w 2"]:
    """Mean row and column of what each pixel attends to."""
    attention = attention.float()
    axes = (torch.arange(side, device=attention.device).to(attention) for side in size)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)
    with full_precision(attention.device):
        return (attention @ grid).unflatten(1, size)


def attention_variation(
    places: Float[Tensor, "rows h w 2"], worn: Float[Tensor, "rows u v 1"]
) -> Float[Tensor, ""]:
    """The loss; 0 where no two neighbours show the garment.

    Args:
        places: that pixels look at.
        worn: 1 where the person's picture shows the garment, at any size.
    """
    size = places.shape[1:3]
    mask = F.interpolate(worn.movedim(-1, 1).to(places), size, mode="nearest")[:, 0]
    total = places.new_zeros(())
    for axis in (1, 2):
        steps = places.diff(dim=axis).abs().sum(dim=-1)
        length = mask.shape[axis]
        both = mask.narrow(axis, 1, length - 1) * mask.narrow(axis, 0, length - 1)
        total = total + (steps * both).sum() / both.sum().clamp(min=1.0)
    return total


@contextmanager
def watching(warps: WarpBlocks, blocks: Sequence[int]) -> Iterator[dict[int, SeenAttention]]:
    """Inside, what these blocks' cross-attention sees is kept, with gradients."""
    seen: dict[int, SeenAttention] = {}
    sizes: dict[int, tuple[int, int]] = {}

    def measure(number: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[number] = tuple(inputs[0].shape[-2:])

    def keep(
        number: int, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]
    ) -> None:
        context = named["encoder_hidden_states"]
        seen[number] = SeenAttention(module, inputs[0], context, sizes[number])

    with ExitStack() as stack:
        for number in blocks:
            block = warps.blocks[number]
            stack.callback(block.register_forward_pre_hook(partial(measure, number)).remove)
            attn = block.transformer_blocks[0].attn2
            hook = attn.register_forward_pre_hook(partial(keep, number), with_kwargs=True)
            stack.callback(hook.remove)
        yield seen
