"""The one place that changes a UNet's attention: an ordered list of operations on its layers.

Each attention layer of a transformer block gets one processor. Operations see the layer, what the
rows of the batch are, and the step of the sampler; none counts calls, so repeated or recomputed
forward passes change nothing. Where no operation needs attention probabilities, the layer's own
processor runs (fused attention); where none applies at all, its result is bit for bit the same.

    with AttentionHub(unet, [CrossViewAttention()]) as hub, hub.batch(BatchLayout(views=4)):
        unet(latents, t, encoder_hidden_states=text, class_labels=cameras)

A tool that acts for one call adds its operations to the hub that is there, or to one of its own:

    with attention_operations(unet, [operation], step=3):
        prior.guided_noise(latents, t, cond, uncond, 7.5)

Attention blocks outside of transformer blocks, with a normalisation of their own, are left alone.
While a hub is installed, processors with weights (IP-Adapter) are not part of the UNet's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

__all__ = [
    "AttentionCall",
    "AttentionHub",
    "AttentionLayer",
    "AttentionOperation",
    "BatchLayout",
    "attention_operations",
    "batch_roles",
]

STOCK_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer of a UNet."""

    name: str
    """Its path, such as down_blocks.0.attentions.0.transformer_blocks.0.attn1."""
    index: int
    """Its place among the layers, in the UNet's own order."""
    place: Literal["down", "mid", "up"]
    """The part of the UNet it lies in."""
    is_cross: bool
    """Whether it looks at the text (attn2) instead of the image itself (attn1)."""
    heads: int
    """Number of heads."""
    level: int = 0
    """How often the image was halved before this layer."""


@dataclass(frozen=True)
class BatchLayout:
    """What the rows of a denoiser call are."""

    roles: tuple[str, ...] = ()
    """A name for each row, such as "uncond" and "cond"; empty where nobody needs them."""
    views: int = 1
    """So many consecutive rows are views of one object."""
    step: int | None = None
    """Step of the sampler, from 0."""


@dataclass(frozen=True)
class AttentionCall:
    """Where and for what a layer is being evaluated."""

    layer: AttentionLayer
    batch: BatchLayout
    latent_size: tuple[int, int] | None = None
    """Rows and columns of the latents; None where the layer is called without its UNet."""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the layer's image tokens.

        Raises:
            UnsupportedModel: if the layer was called without its UNet.
        """
        if self.latent_size is None:
            raise UnsupportedModel(
                f"The image size in {self.layer.name} is unknown: it was called alone. Expected a "
                "call of the whole UNet."
            )
        height, width = self.latent_size
        for _ in range(self.layer.level):
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def rows_of(self, role: str, rows: int) -> list[int]:
        """Which of ``rows`` rows have a role.

        Where views are seen together, one row stands for all views of a set. Operations that add
        rows put them behind those of the batch, so that these are found here as before.

        Raises:
            ShapeError: if there are fewer rows than roles.
        """
        roles = self.batch.roles
        if self.batch.views > 1 and len(roles) == rows * self.batch.views:
            roles = roles[:: self.batch.views]
        if len(roles) > rows:
            raise ShapeError(
                f"{self.layer.name} has {rows} rows and the batch {len(roles)} roles - expected "
                "one role for each row. Give every row of the condition its role."
            )
        return [row for row, name in enumerate(roles) if name == role]


class AttentionOperation:
    """A change of attention. Methods return new tensors and never write into those they get."""

    def applies_to(self, call: AttentionCall) -> bool:
        """Whether this operation has anything to do in this call."""
        return True

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Whether ``probabilities`` must be called, which rules out fused attention."""
        return False

    def inputs(
        self, call: AttentionCall, hidden: Float[Tensor, "rows n c"], context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Change what queries (``hidden``) and keys and values (``context``) are made of."""
        return hidden, context

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Change the attention probabilities."""
        return probabilities

    def output(
        self, call: AttentionCall, output: Float[Tensor, "rows n c"]
    ) -> Float[Tensor, "rows n c"]:
        """Change the layer's output; undoes any reshaping of ``inputs``."""
        return output


class AttentionHub:
    """Owns the attention processors of a UNet between ``install`` and ``restore``.

    ``inputs`` and ``probabilities`` of the operations run in order, ``output`` in reverse order, so
    that an operation that reshapes the batch surrounds those after it.
    """

    def __init__(self, unet: nn.Module, operations: Sequence[AttentionOperation] = ()) -> None:
        """Nothing is changed yet.

        Args:
            unet: a diffusers UNet2DConditionModel.
            operations: in the order in which they act.
        """
        self.unet = unet
        self.operations = list(operations)
        self.layout = BatchLayout()
        self.latent_size: tuple[int, int] | None = None
        self._modules = _transformer_attention(unet)
        levels = _levels(unet)
        self.layers = tuple(
            _describe(name, index, module, levels)
            for index, (name, module) in enumerate(self._modules.items())
        )
        self._replaced: dict[str, Any] = {}
        self._size_hook: Any = None

    def __enter__(self) -> AttentionHub:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()

    def install(self) -> None:
        """Put this hub's processors in place.

        Raises:
            UnsupportedModel: if another hub is installed; add operations to that one instead.
        """
        if any(isinstance(m.processor, _HubProcessor) for m in self._modules.values()):
            raise UnsupportedModel(
                "The UNet's attention has a hub already. Add operations to that hub, or restore it."
            )
        for layer in self.layers:
            module = self._modules[layer.name]
            self._replaced[layer.name] = module.processor
            module.set_processor(_HubProcessor(self, layer, module.processor))
        self._size_hook = self.unet.register_forward_pre_hook(self._see_size, with_kwargs=True)

    def restore(self) -> None:
        """Put back exactly the processors that ``install`` found; harmless if not installed."""
        for name, processor in self._replaced.items():
            self._modules[name].set_processor(processor)
        self._replaced = {}
        if self._size_hook is not None:
            self._size_hook.remove()
        self._size_hook, self.latent_size = None, None

    @contextmanager
    def batch(self, layout: BatchLayout) -> Iterator[None]:
        """Inside, the rows of denoiser calls are those of ``layout``."""
        before, self.layout = self.layout, layout
        try:
            yield
        finally:
            self.layout = before

    def _see_size(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        self.latent_size = tuple(sample.shape[-2:])


@contextmanager
def attention_operations(
    unet: nn.Module, operations: Sequence[AttentionOperation], *, step: int | None = None
) -> Iterator[AttentionHub]:
    """Inside, the operations act after those that do already, in the UNet's hub or a new one.

    Args:
        unet: a diffusers UNet2DConditionModel.
        operations: in the order in which they act.
        step: step of the sampler, from 0; None leaves it as an outer tool told it.

    Raises:
        UnsupportedModel: if an outer tool is at another step.
    """
    hub = _installed_hub(unet)
    is_new = hub is None
    if hub is None:
        hub = AttentionHub(unet)
        hub.install()
    before, told = hub.operations, hub.layout.step
    try:
        if step is not None and told not in (None, step):
            raise UnsupportedModel(
                f"Two attention tools are at steps {told} and {step} of the sampler - expected the "
                "same. Give all tools the sampler's number of steps."
            )
        hub.operations = [*before, *operations]
        with hub.batch(replace(hub.layout, step=told if step is None else step)):
            yield hub
    finally:
        hub.operations = before
        if is_new:
            hub.restore()


@contextmanager
def batch_roles(unet: nn.Module, roles: tuple[str, ...]) -> Iterator[None]:
    """Inside, the rows of denoiser calls have these roles; nothing where no tool asks for them."""
    hub = _installed_hub(unet) if roles else None
    if hub is None:
        yield
        return
    with hub.batch(replace(hub.layout, roles=roles)):
        yield


class _HubProcessor:
    """What diffusers calls in place of a layer's own processor."""

    def __init__(self, hub: AttentionHub, layer: AttentionLayer, inner: Any) -> None:
        self.hub, self.layer, self.inner = hub, layer, inner

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
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
        watchers = [op for op in operations if op.needs_probabilities(call)]
        if watchers:
            output = self._explicit(attn, hidden, context, attention_mask, call, watchers)
        else:
            output = self.inner(attn, hidden, context, attention_mask, temb)
        for operation in reversed(operations):
            output = operation.output(call, output)
        return output

    def _explicit(
        self,
        attn: nn.Module,
        hidden: Tensor,
        context: Tensor | None,
        mask: Tensor | None,
        call: AttentionCall,
        operations: list[AttentionOperation],
    ) -> Tensor:
        """Attention with its probabilities in sight."""
        if type(self.inner).__name__ not in STOCK_PROCESSORS or attn.norm_q is not None:
            raise UnsupportedModel(
                f"{self.layer.name} is computed by {type(self.inner).__name__}, which shows no "
                "probabilities. Expected stock attention; remove the other attention tool first."
            )
        if context is None:
            context = hidden
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        rows, tokens = context.shape[:2]
        mask = attn.prepare_attention_mask(mask, tokens, rows)
        query = attn.head_to_batch_dim(attn.to_q(hidden))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(query, key, mask).unflatten(0, (-1, attn.heads))
        for operation in operations:
            probabilities = operation.probabilities(call, probabilities)
        output = attn.batch_to_head_dim(torch.bmm(probabilities.flatten(0, 1), value))
        return attn.to_out[1](attn.to_out[0](output)) / attn.rescale_output_factor


def _transformer_attention(unet: nn.Module) -> dict[str, nn.Module]:
    """Attention modules by path, without those that normalise or add their input themselves."""
    from diffusers.models.attention_processor import Attention

    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention)
        and module.group_norm is None
        and module.spatial_norm is None
        and not module.residual_connection
    }


def _installed_hub(unet: nn.Module) -> AttentionHub | None:
    for module in unet.modules():
        if isinstance(getattr(module, "processor", None), _HubProcessor):
            return module.processor.hub
    return None


def _levels(unet: nn.Module) -> dict[str, int]:
    """How often the image was halved, by block."""
    levels, level = {}, 0
    for index, block in enumerate(unet.down_blocks):
        levels[f"down_blocks.{index}"] = level
        level += bool(getattr(block, "downsamplers", None))
    levels["mid_block"] = level
    for index, block in enumerate(unet.up_blocks):
        levels[f"up_blocks.{index}"] = level
        level -= bool(getattr(block, "upsamplers", None))
    return levels


def _describe(name: str, index: int, module: nn.Module, levels: dict[str, int]) -> AttentionLayer:
    place = name.split("_", 1)[0]
    block = "mid_block" if place == "mid" else ".".join(name.split(".")[:2])
    is_cross = bool(module.is_cross_attention)
    return AttentionLayer(name, index, place, is_cross, module.heads, levels[block])
