"""The processor that the attention hub puts into a layer: stock attention with operations in it.

Where no operation wants to see inside of the attention, the layer's own processor runs. Otherwise
the same steps as in diffusers' AttnProcessor2_0 are taken here, with the operations between them;
probabilities are computed one by one only where an operation asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.attention_calls import (
    AttentionCall,
    AttentionLayer,
    AttentionOperation,
    BatchLayout,
)
from image_tools.errors import UnsupportedModel

__all__ = ["HubProcessor", "attend", "split_heads"]

STOCK_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


class _Hub(Protocol):
    """What processors read of the hub that put them in place."""

    operations: list[AttentionOperation]
    layout: BatchLayout
    latent_size: tuple[int, int] | None


def split_heads(states: Float[Tensor, "rows n inner"], heads: int) -> Tensor:
    """Projected tokens as ``[rows, heads, n, d]``."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(
    query: Float[Tensor, "rows heads n d"],
    key: Float[Tensor, "rows heads m d"],
    value: Float[Tensor, "rows heads m d"],
    bias: Tensor | None = None,
) -> Float[Tensor, "rows n inner"]:
    """Fused attention with its heads side by side, as a layer's last projection wants them."""
    bias = None if bias is None else bias.to(query.dtype)
    values = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return values.transpose(1, 2).flatten(2)


class HubProcessor:
    """What diffusers calls in place of a layer's own processor."""

    def __init__(self, hub: _Hub, layer: AttentionLayer, inner: Any) -> None:
        """Act for ``hub`` in ``layer``, whose own processor is ``inner``."""
        self.hub, self.layer, self.inner = hub, layer, inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """The layer's output after all operations that apply."""
        call = AttentionCall(self.layer, self.hub.layout, self.hub.latent_size)
        operations = [op for op in self.hub.operations if op.applies_to(call)]
        if not operations:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        if attention_mask is not None and not self.layer.is_cross:
            raise UnsupportedModel(
                f"{self.layer.name} got a mask over image tokens. Expected none, because "
                "attention operations may reorder them."
            )
        hidden, context = hidden_states, encoder_hidden_states
        for operation in operations:
            hidden, context = operation.inputs(call, hidden, context)
        if any(op.needs_heads(call) or op.needs_probabilities(call) for op in operations):
            output = self._seen_through(attn, hidden, context, attention_mask, call, operations)
        else:
            output = self.inner(attn, hidden, context, attention_mask, temb)
        for operation in reversed(operations):
            output = operation.output(call, output)
        return output

    def _seen_through(
        self,
        attn: nn.Module,
        hidden: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        call: AttentionCall,
        operations: Sequence[AttentionOperation],
    ) -> Tensor:
        """Attention with its heads, and where wanted its probabilities, in sight."""
        if type(self.inner).__name__ not in STOCK_PROCESSORS:
            raise UnsupportedModel(
                f"{self.layer.name} is computed by {type(self.inner).__name__}, which shows no "
                "heads and no probabilities. Expected stock attention; remove the other attention "
                "tool first, and leave attention_slicing off."
            )
        if context is None:
            context = hidden
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        rows, tokens = context.shape[:2]
        bias = attn.prepare_attention_mask(mask, tokens, rows)
        bias = None if bias is None else bias.unflatten(0, (rows, -1))
        query, key, value = (
            split_heads(project(states), attn.heads)
            for project, states in ((attn.to_q, hidden), (attn.to_k, context), (attn.to_v, context))
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        inside = [op for op in operations if op.needs_heads(call)]
        for operation in inside:
            query, key, value, more = operation.heads(call, query, key, value)
            bias = _add_bias(bias, more, key.shape[2])
        watchers = [op for op in operations if op.needs_probabilities(call)]
        if watchers:
            output = _attend_in_sight(attn, query, key, value, bias, call, watchers)
        else:
            output = attend(query, key, value, bias)
        for operation in inside:
            added = operation.added(call, attn, query)
            output = output if added is None else output + added
        return attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor


def _attend_in_sight(
    attn: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    call: AttentionCall,
    watchers: Sequence[AttentionOperation],
) -> Float[Tensor, "rows n inner"]:
    """Attention by its probabilities, which the watchers may change."""
    rows, heads = query.shape[:2]
    if bias is not None:
        bias = bias.to(query).expand(rows, heads, -1, key.shape[2]).flatten(0, 1)
    scores = attn.get_attention_scores(query.flatten(0, 1), key.flatten(0, 1), bias)
    probabilities = scores.unflatten(0, (rows, heads))
    for watcher in watchers:
        probabilities = watcher.probabilities(call, probabilities)
    values = torch.bmm(probabilities.flatten(0, 1), value.flatten(0, 1))
    return values.unflatten(0, (rows, heads)).transpose(1, 2).flatten(2)


def _add_bias(bias: Tensor | None, more: Tensor | None, keys: int) -> Tensor | None:
    """Sum of biases of logits; keys that came behind those of the first have none there."""
    if bias is None:
        return more
    bias = F.pad(bias, (0, keys - bias.shape[-1]))
    return bias if more is None else bias + more
