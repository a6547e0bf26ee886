"""Where the weights of edit and control models lie: given by path, or shipped with the package.

    for key, name in named_adapters(config):
        files = find_adapter(name, key)

Nothing is loaded here; ``studio doctor`` asks too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from image_tools.errors import WeightsMissing
from image_tools.pocket.paths import POCKET_FOLDER
from studio.images.configs import ImageTaskConfig, RegionalImageConfig
from studio.images.method_configs import (
    ControlNetMethodConfig,
    InstructPix2PixMethodConfig,
    UniControlNetMethodConfig,
)

__all__ = ["adapter_path", "find_adapter", "named_adapters"]

SHIPPED = "pocket-"
SUFFIX = ".safetensors"


def adapter_path(name: str, key: str) -> Path:
    """The folder or file that a scene means by ``name``.

    Raises:
        WeightsMissing: it is not there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith(SHIPPED) and path.name == name:
        shipped = POCKET_FOLDER.parent / name
        if shipped.is_dir():
            return shipped
        raise WeightsMissing(
            f"{key}: the weights of '{name}' are not part of this version - expected them in "
            f"'{shipped}'. Name a model of your own: {key}=FOLDER"
        )
    raise WeightsMissing(
        f"{key}: '{name}' is not there - expected a folder in diffusers layout, a .safetensors "
        "file, or the name of an adapter that ships with the package."
    )


def find_adapter(name: str, key: str) -> list[Path]:
    """The weight files that a scene means by ``name``: one file, or those in its folder.

    Raises:
        WeightsMissing: there are none.
    """
    path = adapter_path(name, key)
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
