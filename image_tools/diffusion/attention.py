"""The one place that changes a UNet's attention: an ordered list of operations on its layers.

Each attention layer of a transformer block gets one processor. Operations see the layer, what the
rows of the batch are, and the step of the sampler; none counts calls, so repeated or recomputed
forward passes change nothing. Where no operation looks inside of the attention, the layer's own
processor runs; where none applies at all, its result is bit for bit the same. Operations on heads
keep attention fused, those on probabilities do not.

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
from dataclasses import replace
from typing import Any

from torch import nn

from image_tools.diffusion.attention_calls import (
    AttentionCall,
    AttentionLayer,
    AttentionOperation,
    BatchLayout,
)
from image_tools.diffusion.attention_processor import HubProcessor
from image_tools.errors import UnsupportedModel

__all__ = [
    "AttentionCall",
    "AttentionHub",
    "AttentionLayer",
    "AttentionOperation",
    "BatchLayout",
    "attention_operations",
    "batch_roles",
]


class AttentionHub:
    """Owns the attention processors of a UNet between ``install`` and ``restore``.

    All hooks of the operations run in order but ``output``, which runs in reverse order, so that an
    operation that reshapes the batch surrounds those after it.
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
        if any(isinstance(m.processor, HubProcessor) for m in self._modules.values()):
            raise UnsupportedModel(
                "The UNet's attention has a hub already. Add operations to that hub, or restore it."
            )
        for layer in self.layers:
            module = self._modules[layer.name]
            self._replaced[layer.name] = module.processor
            module.set_processor(HubProcessor(self, layer, module.processor))
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
        if isinstance(getattr(module, "processor", None), HubProcessor):
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
