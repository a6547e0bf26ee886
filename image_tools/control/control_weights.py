"""ControlNet files of every layout, and the original layout for tools that want it.

    ldm        control_model.*: the authors' control_sd15_*, with or without a whole Stable
               Diffusion around it, and control_v11*
    ldm_bare   the same names without that prefix
    stock      diffusers' names

Nothing is asked of a network: one file needs the matching diffusers config.json in a folder. A .pth
file is read by ``torch.load(weights_only=True)`` alone, which builds no objects.

    controlnet = read_controlnet(ControlConfig(weights="~/models/control_v11p_sd15_canny"))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from image_tools.control.control_configs import ControlConfig
from image_tools.control.ldm_names import control_names, hint_names
from image_tools.diffusion.ldm_names import translate
from image_tools.diffusion.loading import read_tensors
from image_tools.diffusion.weights import find_weights, only_variant, read_json
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.tensor_files import read_flat

if TYPE_CHECKING:
    from diffusers import ControlNetModel

__all__ = [
    "ControlLayout",
    "detect_layout",
    "from_stock",
    "read_controlnet",
    "to_stock",
    "transfer_controlnet",
]

ControlLayout = Literal["ldm", "ldm_bare", "stock"]
ROLE = "ControlNet"
LDM_PREFIX = "control_model."
STOCK_STEM = "diffusion_pytorch_model"
SHOWN_KEYS = 5
# Tensors that give away models which are no plain ControlNets.
OTHER_DESIGNS = {
    "control_type_proj.": "a union ControlNet",
    "task_embedding": "a union ControlNet",
    "lora_controlnet": "a Control-LoRA",
    "local_adapter.": "a Uni-ControlNet",
    "adapter.body.": "a T2I-Adapter",
    "body.0.in_conv.": "a T2I-Adapter",
    "controlnet_x_embedder.": "a ControlNet of a transformer",
    "pos_embed_input.": "a ControlNet of a transformer",
    "image_proj.": "an IP-Adapter",
}


def detect_layout(keys: list[str]) -> ControlLayout:
    """Which of the layouts the tensor names are of.

    Raises:
        UnsupportedModel: none of them, saying what it is where that is known.
    """
    for mark, design in OTHER_DESIGNS.items():
        if any(key.startswith(mark) or f".{mark}" in key or key == mark for key in keys):
            raise UnsupportedModel(
                f"The file holds {design}. Expected a ControlNet of Stable Diffusion 1.x, 2.x or "
                "SDXL, or of a pocket model."
            )
    if any(key.startswith(f"{LDM_PREFIX}input_hint_block.") for key in keys):
        return "ldm"
    if any(key.startswith("input_hint_block.") for key in keys):
        return "ldm_bare"
    if any(key.startswith("controlnet_cond_embedding.") for key in keys):
        return "stock"
    shown = ", ".join(sorted(keys)[:SHOWN_KEYS])
    raise UnsupportedModel(
        f"Nothing that reads a condition image among {len(keys)} tensors ({shown}, ...). Expected "
        "a ControlNet: control_model.*, input_hint_block.* or controlnet_cond_embedding.*."
    )


def to_stock(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A ControlNet's tensors of any layout by diffusers' names.

    Args:
        tensors: a ControlNet, or a whole checkpoint with one.
        config: settings of the ControlNet.

    Raises:
        UnsupportedModel: naming the first tensors that belong nowhere.
    """
    layout = detect_layout(list(tensors))
    if layout == "stock":
        return dict(tensors)
    prefix = LDM_PREFIX if layout == "ldm" else ""
    names = {**control_names(config), **hint_names(config)}
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    translated = {key: translate(key, names) for key in own}
    unknown = [key for key, name in translated.items() if name is None]
    if unknown:
        raise UnsupportedModel(
            f"{len(unknown)} tensors belong nowhere in a ControlNet of these settings: "
            f"{', '.join(unknown[:SHOWN_KEYS])}. Expected the config.json of its own family."
        )
    return {translated[key]: tensor for key, tensor in own.items()}


def from_stock(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], layout: ControlLayout
) -> dict[str, Tensor]:
    """The inverse of :func:`to_stock`: a ControlNet's tensors by the names of ``layout``."""
    if layout == "stock":
        return dict(tensors)
    names = {**control_names(config), **hint_names(config)}
    inverse = {stock: ldm for ldm, stock in names.items()}
    prefix = LDM_PREFIX if layout == "ldm" else ""
    return {f"{prefix}{translate(key, inverse)}": tensor for key, tensor in tensors.items()}


def read_controlnet(config: ControlConfig, dtype: torch.dtype = torch.float32) -> ControlNetModel:
    """Read a ControlNet from a folder or from one file of any layout.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights: more than tensors in them.
        UnsupportedModel: another design, or settings that do not belong to the file.
    """
    path = Path(config.weights).expanduser()
    if path.is_dir():
        variant = only_variant(path, STOCK_STEM)
        files = find_weights(path, STOCK_STEM, role=ROLE, variant=variant)
        tensors, folder = read_tensors(files, ROLE), path
    else:
        tensors = read_flat(path, ROLE)
        folder = Path(config.settings).expanduser() if config.settings else path.parent
    return _build(tensors, _read_settings(folder), dtype, path)


def transfer_controlnet(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A ControlNet for another denoiser of the same design: ``control + target - base``.

    Args:
        tensors: the ControlNet's, by diffusers' names.
        base: the denoiser's that it was copied from.
        target: the denoiser's that it shall serve. What only the ControlNet has stays.
    """
    return {
        name: tensor + target[name].to(tensor) - base[name].to(tensor)
        if name in base and name in target and base[name].shape == tensor.shape
        else tensor
        for name, tensor in tensors.items()
    }


def _read_settings(folder: Path) -> dict[str, Any]:
    settings = read_json(folder / "config.json", role=f"{ROLE}'s settings")
    kind = settings.get("_class_name", "ControlNetModel")
    if kind != "ControlNetModel":
        raise UnsupportedModel(
            f"'{folder / 'config.json'}' describes a {kind}. Expected a ControlNetModel."
        )
    return settings


def _build(
    tensors: Mapping[str, Tensor], settings: dict[str, Any], dtype: torch.dtype, path: Path
) -> ControlNetModel:
    from diffusers import ControlNetModel

    with torch.device("meta"):
        model = ControlNetModel.from_config(settings)
    found = {k: t.to(dtype) for k, t in to_stock(tensors, model.config).items()}
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    actual = {name: tuple(t.shape) for name, t in found.items()}
    if actual != expected:
        wrong = sorted(n for n in {*actual, *expected} if actual.get(n) != expected.get(n))
        said = ", ".join(
            f"{n} ({actual.get(n, 'absent')}, expected {expected.get(n, 'nothing')})"
            for n in wrong[:SHOWN_KEYS]
        )
        absent = all(n not in actual for n in wrong)
        raise (WeightsMissing if absent else UnsupportedModel)(
            f"'{path}' does not fit its settings in {len(wrong)} tensors: {said}. Expected all "
            "tensors of a ControlNet with the config.json of its own family."
        )
    model.load_state_dict(found, strict=True, assign=True)
    return model.eval().requires_grad_(False)
