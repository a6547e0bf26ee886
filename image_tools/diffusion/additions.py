"""What image tools add to one denoiser call: channels beside the latents, residuals of its encoder,
changes of its attention.

An addition belongs to the rows of a condition, as text does, so that whoever stacks conditions for
a call (guidance of any kind, sets of views) says which row gets what. Without additions the call
is the plain one.

    condition = replace(condition, additions=(*condition.additions, addition))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.attention import AttentionOperation

__all__ = ["Addition", "DenoiserCall", "scatter_rows"]


@dataclass(frozen=True)
class DenoiserCall:
    """The inputs of a UNet, in its own number format and on its device."""

    latents: Float[Tensor, "rows c s s"]
    """Noisy latents alone."""
    t: Int[Tensor, " rows"]
    """Timesteps."""
    tokens: Float[Tensor, "rows length width"]
    """Text."""
    class_labels: Tensor | None = None
    """Input of the class embedding."""
    added: dict[str, Tensor] | None = None
    """What SDXL is told beside the text."""
    channels: tuple[Tensor, ...] = ()
    """Put beside the latents, in this order."""
    down: tuple[Tensor, ...] = ()
    """Added to the encoder's outputs on their way to the decoder."""
    mid: Tensor | None = None
    """Added to the middle block's output."""
    operations: tuple[AttentionOperation, ...] = ()
    """Change attention, after those operations that act on the denoiser already."""

    @property
    def sample(self) -> Tensor:
        """The UNet's first argument."""
        return torch.cat([self.latents, *self.channels], dim=1) if self.channels else self.latents

    def with_channels(self, channels: Float[Tensor, "rows k s s"]) -> DenoiserCall:
        """More input channels."""
        return replace(self, channels=(*self.channels, channels))

    def with_operations(self, *operations: AttentionOperation) -> DenoiserCall:
        """More changes of attention."""
        return replace(self, operations=(*self.operations, *operations))

    def with_residuals(self, down: Sequence[Tensor], mid: Tensor) -> DenoiserCall:
        """More residuals, which add up with those that are there."""
        if self.mid is None:
            return replace(self, down=tuple(down), mid=mid)
        total = tuple(mine + theirs for mine, theirs in zip(self.down, down, strict=True))
        return replace(self, down=total, mid=self.mid + mid)


class Addition(Protocol):
    """What one tool adds to each row of a denoiser call."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def expand(self, rows: int) -> Addition:
        """A single row repeated, or itself where it has that many."""
        ...

    def stack(self, others: Sequence[Addition]) -> Addition:
        """Rows of other additions of the same tool below these."""
        ...

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with this addition."""
        ...


def scatter_rows(
    part: Float[Tensor, "n ..."], chosen: Int[Tensor, " n"], rows: int
) -> Float[Tensor, "rows ..."]:
    """What was computed for some rows, at their places among all rows; zeros elsewhere."""
    if len(chosen) == rows:
        return part
    return part.new_zeros(rows, *part.shape[1:]).index_copy(0, chosen, part)
