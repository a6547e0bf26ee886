"""Public InstructPix2Pix weights (arXiv 2211.09800) into a stock denoiser.

    folder   diffusers' layout: a pipeline's folder, or its unet folder
    file     one .safetensors of the original layout (model.diffusion_model.*), with the matching
             config.json in a folder. Averaged weights (model_ema.*) are taken where they are
             there, as the authors do.

Only the denoiser is read: VAE, text encoder and schedule are those of the prior that it edits with.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from image_tools.diffusion.loading import read_tensors
from image_tools.diffusion.parametrization import noise_schedule
from image_tools.diffusion.stock_rules import refuse_edm
from image_tools.diffusion.weights import (
    check_safetensors_file,
    find_weights,
    only_variant,
    read_json,
)
from image_tools.errors import UnsupportedModel, WeightsMissing

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["averaged_weights", "read_edit_unet"]

ROLE = "edit model"
LDM_PREFIX = "model.diffusion_model."
AVERAGED_PREFIX = "model_ema."
STOCK_STEM = "diffusion_pytorch_model"
SHOWN_KEYS = 5


def read_edit_unet(
    path: Path, settings: Path | None = None, dtype: torch.dtype = torch.float32
) -> UNet2DConditionModel:
    """Read an edit model's denoiser.

    Args:
        path: a folder, or one file.
        settings: for one file, the folder of the matching config.json.
        dtype: number format of the result.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights if they are pickles.
        UnsupportedModel: tensors that do not belong, are missing, or have other shapes, or a model
            of a schedule that no prior has.
    """
    from diffusers import UNet2DConditionModel

    path = path.expanduser()
    if path.is_dir():
        folder = path / "unet" if (path / "unet").is_dir() else path
        variant = only_variant(folder, STOCK_STEM)
        files = find_weights(folder, STOCK_STEM, role=ROLE, variant=variant)
        _check_schedule(folder.parent / "scheduler/scheduler_config.json")
    else:
        check_safetensors_file(path, role=ROLE)
        folder, files = (settings or path.parent).expanduser(), [path]
    config = read_json(folder / "config.json", role=f"{ROLE}'s settings")
    tensors = read_tensors(files, ROLE)
    refuse_edm(tensors, path, role=ROLE)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    if any(key.startswith(LDM_PREFIX) for key in tensors):
        tensors = _from_ldm(tensors, unet)
    _check_shapes(tensors, unet, path)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    unet.load_state_dict(tensors, strict=True, assign=True)
    return unet.eval().requires_grad_(False)


def averaged_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint whose denoiser is the averaged one, where there is one.

    Its tensors are named like the denoiser's without dots after the first.
    """
    return {
        key: tensors.get(_averaged_name(key), tensor)
        for key, tensor in tensors.items()
        if not key.startswith(AVERAGED_PREFIX)
    }


def _check_schedule(path: Path) -> None:
    """Refuse a pipeline whose schedule is of another kind; the prior's own is used."""
    if path.is_file():
        noise_schedule(read_json(path, role=f"{ROLE}'s schedule"))


def _averaged_name(key: str) -> str:
    return AVERAGED_PREFIX + key.removeprefix("model.").replace(".", "")


def _from_ldm(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = {k: t for k, t in averaged_weights(tensors).items() if k.startswith(LDM_PREFIX)}
    return convert_ldm_unet_checkpoint(own, dict(unet.config))


def _check_shapes(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel, path: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in unet.state_dict().items()}
    actual = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = sorted(n for n in {*actual, *expected} if actual.get(n) != expected.get(n))
    if not wrong:
        return
    said = ", ".join(
        f"{n} ({actual.get(n, 'absent')}, expected {expected.get(n, 'nothing')})"
        for n in wrong[:SHOWN_KEYS]
    )
    absent = all(n not in actual for n in wrong)
    raise (WeightsMissing if absent else UnsupportedModel)(
        f"'{path}' does not fit its settings in {len(wrong)} tensors: {said}. Expected an "
        "InstructPix2Pix denoiser with the config.json of its own family."
    )
