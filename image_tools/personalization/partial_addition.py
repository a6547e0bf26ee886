"""Additions of image tools for some rows of a denoiser call, where a tool brings rows of its own.

    addition = PartialAddition(addition, torch.arange(batch), batch + more)

The inner addition sees its rows alone. Its residuals and channels are 0 in all others, and so is
what its attention operations add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.diffusion.additions import Addition, DenoiserCall, scatter_rows
from image_tools.diffusion.attention import AttentionCall, AttentionOperation
from image_tools.errors import UnsupportedModel

__all__ = ["PartialAddition"]


@dataclass(frozen=True)
class PartialAddition:
    """An addition to some rows of a call, whose number it knows."""

    inner: Addition
    chosen: Int[Tensor, " n"]
    """The rows that it is for."""
    rows: int

    def __len__(self) -> int:
        return self.rows

    def expand(self, rows: int) -> PartialAddition:
        """Itself, which has all rows already.

        Raises:
            ValueError: if it has another number of rows.
        """
        if self.rows != rows:
            raise ValueError(f"an addition has {self.rows} rows for {rows} latents. Give {rows}.")
        return self

    def stack(self, others: Sequence[PartialAddition]) -> PartialAddition:
        """More rows of the same tool."""
        chosen, rows = [self.chosen], self.rows
        for other in others:
            chosen.append(other.chosen + rows)
            rows += other.rows
        inner = self.inner.expand(len(self.chosen))
        rest = [other.inner.expand(len(other.chosen)) for other in others]
        return PartialAddition(inner.stack(rest), torch.cat(chosen), rows)

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with what the inner addition adds to its rows.

        Raises:
            UnsupportedModel: if it changes what is there, or attention by more than it adds.
        """
        chosen = self.chosen.to(call.latents.device)
        own = _selected(call, chosen)
        part = self.inner.expand(len(chosen)).apply(own)
        names = ("latents", "t", "tokens", "class_labels", "added")
        if any(getattr(part, name) is not getattr(own, name) for name in names):
            raise UnsupportedModel(
                f"{type(self.inner).__name__} changes what some rows of a call are told - expected "
                "a tool that only adds. Put it inside of the tool that brings more rows."
            )
        channels = tuple(scatter_rows(each, chosen, self.rows) for each in part.channels)
        call = replace(
            call,
            channels=(*call.channels, *channels),
            operations=(
                *call.operations,
                *(PartialOperation(each, chosen, self.rows) for each in part.operations),
            ),
        )
        if part.mid is None:
            return call
        down = [scatter_rows(each, chosen, self.rows) for each in part.down]
        return call.with_residuals(down, scatter_rows(part.mid, chosen, self.rows))


class PartialOperation(AttentionOperation):
    """An operation that adds to attention, for some rows."""

    def __init__(self, inner: AttentionOperation, chosen: Int[Tensor, " n"], rows: int) -> None:
        """Limit ``inner`` to the chosen ones of ``rows`` rows.

        Raises:
            UnsupportedModel: if it does more than to add.
        """
        for name in ("inputs", "heads", "probabilities", "output"):
            if getattr(type(inner), name) is not getattr(AttentionOperation, name):
                raise UnsupportedModel(
                    f"{type(inner).__name__} changes the {name} of attention in some rows of a "
                    "call - expected a tool that adds to attention. Put it inside of the tool that "
                    "brings more rows."
                )
        self.inner, self.chosen, self.rows = inner, chosen, rows

    def applies_to(self, call: AttentionCall) -> bool:
        """Where the inner one does."""
        return self.inner.applies_to(call)

    def needs_heads(self, call: AttentionCall) -> bool:
        """Where the inner one does."""
        return self.inner.needs_heads(call)

    def added(
        self, call: AttentionCall, attn: nn.Module, query: Float[Tensor, "rows heads n d"]
    ) -> Float[Tensor, "rows n inner"] | None:
        """What the inner one adds to its rows, and zeros."""
        added = self.inner.added(call, attn, query[self.chosen])
        return None if added is None else scatter_rows(added, self.chosen, self.rows)


def _selected(call: DenoiserCall, chosen: Int[Tensor, " n"]) -> DenoiserCall:
    """Some rows of a call, without what other tools have added."""
    added = call.added and {name: values[chosen] for name, values in call.added.items()}
    return DenoiserCall(
        call.latents[chosen],
        call.t[chosen],
        call.tokens[chosen],
        None if call.class_labels is None else call.class_labels[chosen],
        added,
    )
