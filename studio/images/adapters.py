"""Which weights of edit, control and edge models a scene of pictures names, and their files.

    for key, name in named_adapters(config):
        files = adapter_files(name, role=key)

Nothing is loaded here; ``studio doctor`` asks too.
"""

from __future__ import annotations

from collections.abc import Iterator

from studio.images.configs import (
    ControlImageConfig,
    ImageTaskConfig,
    ReferenceImageConfig,
    RegionalImageConfig,
    TextImageConfig,
    TryOnConfig,
)
from studio.images.method_configs import (
    ControlNetMethodConfig,
    InstructPix2PixMethodConfig,
    SoftEdgeConditionConfig,
    UniControlNetMethodConfig,
)
from studio.images.reading import conditions_of

__all__ = ["named_adapters"]


def named_adapters(config: ImageTaskConfig) -> Iterator[tuple[str, str]]:
    """Every adapter that a scene names, with its key."""
    if isinstance(config, TextImageConfig | RegionalImageConfig):
        return
    if isinstance(config, ReferenceImageConfig):
        yield from ((f"tool.{key}", name) for key, name in config.tool.models())
        return
    method = config.method
    if isinstance(config, ControlImageConfig):
        for key, one in conditions_of(config):
            if isinstance(one, SoftEdgeConditionConfig):
                yield f"{key}.weights", one.weights
    if isinstance(config, TryOnConfig):
        yield from ((f"method.{key}", name) for key, name in method.models())
        return
    if isinstance(method, ControlNetMethodConfig):
        yield from ((f"method.nets.{k}.weights", net.weights) for k, net in enumerate(method.nets))
    elif isinstance(method, InstructPix2PixMethodConfig | UniControlNetMethodConfig):
        yield "method.model", method.model
