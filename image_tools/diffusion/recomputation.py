"""Gradient checkpointing that knows about attention operations.

A block whose activations are recomputed in the backward pass must run as it did the first time, but
by then the operations of its call are gone from the hub. Here each block takes note of them and has
them back while it is recomputed.

    unet.enable_gradient_checkpointing(recomputed_with_operations(unet))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.attention_processor import HubProcessor

__all__ = ["recomputed_with_operations"]


def recomputed_with_operations(model: nn.Module) -> Callable[..., Any]:
    """What calls the model's blocks, for ``enable_gradient_checkpointing``."""

    def run(block: Callable[..., Any], *args: Any) -> Any:
        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), nullcontext() if hub is None else _as_it_was(hub, *state)

        hub = _hub_of(model)
        state = () if hub is None else (hub.operations, hub.layout, hub.latent_size)
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)

    return run


@contextmanager
def _as_it_was(hub: AttentionHub, operations: list, layout: Any, size: Any) -> Iterator[None]:
    """Inside, the hub is in place, with the operations of an earlier call."""
    is_new = _hub_of(hub.unet) is None
    if is_new:
        hub.install()
    before = (hub.operations, hub.layout, hub.latent_size)
    hub.operations, hub.layout, hub.latent_size = operations, layout, size
    try:
        yield
    finally:
        hub.operations, hub.layout, hub.latent_size = before
        if is_new:
            hub.restore()


def _hub_of(model: nn.Module) -> AttentionHub | None:
    """The hub that is in place, if there is one."""
    for module in model.modules():
        processor = getattr(module, "processor", None)
        if isinstance(processor, HubProcessor):
            return processor.hub
    return None
