"""Denoisers of try-on models in stock folders, as their authors and our trainers write them.

A folder holds config.json and diffusion_pytorch_model in .safetensors, whole, in parts or in one
variant such as .fp16.safetensors, or in .bin, of which tensors alone are read and nothing is run.

    encoder = read_unet(Path("bootcomp/comp"), role="garment encoder")
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from image_tools.diffusion.loading import read_tensors
from image_tools.diffusion.weights import find_weights, read_json
from image_tools.personalization.tensor_files import fill, read_flat

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["fill_unet", "read_component", "read_unet"]

STEM = "diffusion_pytorch_model"


def read_unet(
    folder: Path, dtype: torch.dtype = torch.float32, *, role: str
) -> UNet2DConditionModel:
    """A stock denoiser.

    Args:
        folder: of the denoiser alone.
        dtype: number format of the result.
        role: what it is for, named in errors.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights: a .bin with more than tensors.
        UnsupportedModel: tensors that do not fit the settings.
    """
    folder = folder.expanduser()
    settings = read_json(folder / "config.json", role=f"{role}'s settings")
    return fill_unet(settings, read_component(folder, role=role), folder, dtype)


def read_component(folder: Path, *, role: str) -> dict[str, Tensor]:
    """Tensors of a component's folder by their names.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights: a .bin with more than tensors.
    """
    variants = sorted(folder.glob(f"{STEM}.*.safetensors"))
    names = (f"{STEM}.safetensors", f"{STEM}.safetensors.index.json")
    if len(variants) == 1 and not any((folder / name).is_file() for name in names):
        return read_tensors(variants, role)
    pickled = folder / f"{STEM}.bin"
    if pickled.is_file() and not any(folder.glob("*.safetensors")):
        return read_flat(pickled, role)
    return read_tensors(find_weights(folder, STEM, role=role), role)


def fill_unet(
    settings: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path, dtype: torch.dtype
) -> UNet2DConditionModel:
    """A denoiser of these settings and tensors, frozen.

    Raises:
        UnsupportedModel: they do not fit each other.
    """
    from diffusers import UNet2DConditionModel

    own = {name: value for name, value in settings.items() if not name.startswith("_")}
    return fill(
        partial(UNet2DConditionModel.from_config, own),
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        what=f"'{source}' with its settings",
        expected="a denoiser with the config.json of its own family",
    )
