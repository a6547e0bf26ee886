"""Which weights of edit and control models a scene of pictures names, and their files.

    for key, name in named_adapters(config):
        files = find_adapter(name, key)

Nothing is loaded here; ``studio doctor`` asks too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from image_tools.errors import WeightsMissing
from image_tools.pocket.paths import adapter_path
from studio.images.configs import ImageTaskConfig, RegionalImageConfig
from studio.images.method_configs import (
    ControlNetMethodConfig,
    InstructPix2PixMethodConfig,
    UniControlNetMethodConfig,
)

__all__ = ["find_adapter", "named_adapters"]

SUFFIX = ".safetensors"


def find_adapter(name: str, key: str) -> list[Path]:
    """The weight files that a scene means by ``name``: one file, or those in its folder.

    Raises:
        WeightsMissing: there are none.
    """
    path = adapter_path(name, role=key)
    if path.is_file():
        return [path]
    found = sorted(path.glob(f"*{SUFFIX}")) or sorted(path.glob(f"unet/*{SUFFIX}"))
    if not found:
        raise WeightsMissing(f"{key}: no {SUFFIX} file in '{path}' - expected a model's weights.")
    return found


def named_adapters(config: ImageTaskConfig) -> Iterator[tuple[str, str]]:
    """Every adapter that a scene names, with its key."""
    if isinstance(config, RegionalImageConfig):
        return
    method = config.method
    if isinstance(method, ControlNetMethodConfig):
        yield from ((f"method.nets.{k}.weights", net.weights) for k, net in enumerate(method.nets))
    elif isinstance(method, InstructPix2PixMethodConfig | UniControlNetMethodConfig):
        yield "method.model", method.model
