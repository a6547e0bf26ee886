"""LoRA files: read from any layout, written in the one that a tool expects.

Read: diffusers and peft (also old processor keys and peft folders), kohya / A1111 / ComfyUI, and
LyCORIS. Written: ``diffusers`` (stock ``load_lora_weights``), ``peft`` (the same with peft's own
names) and ``kohya``. Every layout keeps the true strength. Only safetensors files are opened.

    lora = read_lora(Path("style.safetensors"))
    write_lora(Path("out/pytorch_lora_weights.safetensors"), lora, layout="diffusers")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from image_tools.diffusion.loading import readable_weights
from image_tools.diffusion.lora_deltas import SECTIONS, BaseModel, LoraDelta, LoraFile, Section
from image_tools.diffusion.lora_layouts import (
    LoraLayout,
    layout_of,
    lora_from_tensors,
    lora_to_tensors,
)
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.diffusion.weights import check_safetensors_file, read_json
from image_tools.errors import WeightsMissing
from renderers.errors import StudioError

__all__ = [
    "LORA_WEIGHT_NAME",
    "SECTIONS",
    "BaseModel",
    "LoraDelta",
    "LoraFile",
    "LoraLayout",
    "Section",
    "lora_layout",
    "read_lora",
    "write_lora",
]

LORA_WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""File name that stock diffusers looks for in a folder."""

PEFT_WEIGHT_NAME = "adapter_model.safetensors"
PEFT_CONFIG_NAME = "adapter_config.json"
ROLE = "LoRA"


def read_lora(path: Path, *, layers_per_block: int = 2) -> LoraFile:
    """Read a LoRA file, or the folder of one.

    Args:
        path: a ``.safetensors`` file in any layout, a folder with ``pytorch_lora_weights``, or a
            folder that peft saved.
        layers_per_block: ResNets in each down block of the denoiser that the LoRA is for.

    Raises:
        UnsafeWeights: if it is a pickle.
        WeightsMissing: if it is not there, damaged or incomplete.
        UnsupportedModel: if it is of a design that Stable Diffusion does not have.
    """
    path, settings = _find_file(path)
    tensors, metadata = _read_tensors(path)
    try:
        return lora_from_tensors(
            tensors, metadata, peft_settings=settings, layers_per_block=layers_per_block
        )
    except StudioError as error:
        raise type(error)(f"'{path}': {error}") from error


def lora_layout(path: Path) -> str:
    """What the layout of a file is called, from the names of its tensors alone.

    Raises:
        WeightsMissing, UnsafeWeights: as ``read_lora``.
    """
    from safetensors import safe_open

    path = _find_file(path)[0]
    with readable_weights(path, ROLE), safe_open(path, framework="pt") as file:
        return layout_of(file.keys())


def write_lora(path: Path, lora: LoraFile, *, layout: LoraLayout) -> None:
    """Write a LoRA file in a layout; an existing file is replaced in one step.

    Bundled embeddings have a place in the ``kohya`` layout only.

    Args:
        path: the file, usually ``pytorch_lora_weights.safetensors`` for diffusers.
        lora: what to write, in the number format that its tensors have.
        layout: ``diffusers``, ``peft`` or ``kohya``.
    """
    tensors, metadata = lora_to_tensors(lora, layout=layout)
    # Copies, because layers may share a tensor, which the format cannot store.
    write_safetensors(path, {key: value.clone() for key, value in tensors.items()}, metadata)


def _find_file(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The file, of a folder its weight file, and peft's settings where it has them."""
    path = path.expanduser()
    settings = None
    if path.is_dir():
        folder, path = path, path / LORA_WEIGHT_NAME
        if not path.is_file():
            path = folder / PEFT_WEIGHT_NAME
            if not (folder / PEFT_CONFIG_NAME).is_file():
                raise WeightsMissing(
                    f"The folder '{folder}' has no LoRA. Expected {LORA_WEIGHT_NAME}, or "
                    f"{PEFT_CONFIG_NAME} with {PEFT_WEIGHT_NAME}; name the file itself if it is "
                    "called otherwise."
                )
            settings = read_json(folder / PEFT_CONFIG_NAME, role=ROLE)
    check_safetensors_file(path, role=ROLE)
    return path, settings


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    with readable_weights(path, ROLE), safe_open(path, framework="pt") as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
