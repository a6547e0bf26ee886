"""IDM-VTON's public weights (yisol/IDM-VTON) as stock modules.

    unet/            config.json and diffusion_pytorch_model.bin or .safetensors: SDXL's inpainting
                     denoiser with 13 channels, and in it an IP-Adapter-plus:
                       encoder_hid_proj.*                               its resampler
                       {layer}.attn2.processor.to_k_ip.weight, to_v_ip  keys and values
    unet_encoder/    GarmentNet, SDXL's denoiser. What SDXL is told beside the text is left out; its
                     tensors, where the file has them, are not used
    image_encoder/   CLIP ViT-H/14
    scheduler/       DDPM with zero terminal signal

The folder's VAE and text encoders are SDXL's, which a prior brings.

    weights = read_idm_vton(Path("IDM-VTON"))
    write_tryon_net(weights.unet, weights.adapter, Path("mine/unet"))
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.diffusion.weights import read_json
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter import IPAdapter, layer_numbers, layer_widths
from image_tools.personalization.ip_adapter_files import projector_of
from image_tools.personalization.tensor_files import fill
from image_tools.tryon.sampling import ddpm_schedule
from image_tools.tryon.tryon_weights import STEM, fill_unet, read_component

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = [
    "IdmVtonWeights",
    "join_tryon_net",
    "read_garment_net",
    "read_idm_vton",
    "split_tryon_net",
    "write_tryon_net",
]

UNET, GARMENT_NET = "IDM-VTON's denoiser", "IDM-VTON's GarmentNet"
PROJECTOR = "encoder_hid_proj."
KEYS = re.compile(r"(?P<layer>.*\.attn2)\.processor\.(?P<part>to_[kv]_ip\.weight)")
# Settings by which diffusers would look for image prompts, which the adapter brings instead.
OWN_PROMPTS = {"encoder_hid_dim_type": None, "encoder_hid_dim": None}
TEXT_ONLY = {"addition_embed_type": None}
TOLD_BESIDE = "add_embedding."


@dataclass(frozen=True)
class IdmVtonWeights:
    """What an IDM-VTON folder holds beside an image encoder."""

    unet: UNet2DConditionModel
    garment_net: UNet2DConditionModel
    adapter: IPAdapter
    scheduler_config: dict[str, Any]


def read_idm_vton(folder: Path, dtype: torch.dtype = torch.float32) -> IdmVtonWeights:
    """Read denoiser, GarmentNet, adapter and schedule.

    Raises:
        WeightsMissing: files are absent or damaged; UnsafeWeights: a .bin with more than tensors.
        UnsupportedModel: tensors that do not fit, or no image prompt.
    """
    folder = folder.expanduser()
    settings = read_json(folder / "unet/config.json", role=f"{UNET}'s settings") | OWN_PROMPTS
    tensors = read_component(folder / "unet", role=UNET)
    own, projector, keys = split_tryon_net(tensors)
    unet = fill_unet(settings, own, folder / "unet", dtype)
    adapter = _adapter(unet, projector, keys, folder / "unet", dtype)
    return IdmVtonWeights(
        unet,
        read_garment_net(folder / "unet_encoder", dtype),
        adapter,
        ddpm_schedule(
            read_json(folder / "scheduler/scheduler_config.json", role="IDM-VTON's schedule")
        ),
    )


def read_garment_net(folder: Path, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """SDXL's denoiser without what it is told beside the text.

    Raises:
        WeightsMissing: files are absent or damaged.
        UnsupportedModel: tensors that do not fit.
    """
    folder = folder.expanduser()
    settings = read_json(folder / "config.json", role=f"{GARMENT_NET}'s settings") | TEXT_ONLY
    tensors = read_component(folder, role=GARMENT_NET)
    own = {name: value for name, value in tensors.items() if not name.startswith(TOLD_BESIDE)}
    return fill_unet(settings, own, folder, dtype)


def split_tryon_net(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The denoiser's own tensors, the resampler's, and keys and values by the layer's name."""
    own: dict[str, Tensor] = {}
    projector: dict[str, Tensor] = {}
    keys: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = KEYS.fullmatch(name)
        if match:
            keys.setdefault(match["layer"], {})[match["part"]] = tensor
        elif name.startswith(PROJECTOR):
            projector[name.removeprefix(PROJECTOR)] = tensor
        else:
            own[name] = tensor
    return own, projector, keys


def join_tryon_net(unet: nn.Module, adapter: IPAdapter) -> dict[str, Tensor]:
    """The inverse of :func:`split_tryon_net`: all tensors of the folder ``unet``."""
    state = {name: tensor.detach() for name, tensor in unet.state_dict().items()}
    for name, tensor in adapter.image_proj.state_dict().items():
        state[PROJECTOR + name] = tensor
    for layer, number in layer_numbers(unet).items():
        for part, tensor in adapter.ip_adapter[number].state_dict().items():
            state[f"{layer}.processor.{part}"] = tensor
    return state


def write_tryon_net(unet: UNet2DConditionModel, adapter: IPAdapter, folder: Path) -> None:
    """Write denoiser and adapter as the folder ``unet`` of the public weights."""
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_config(folder)
    write_safetensors(
        folder / f"{STEM}.safetensors", join_tryon_net(unet, adapter), {"format": "pt"}
    )


def _adapter(
    unet: nn.Module,
    projector: Mapping[str, Tensor],
    keys: Mapping[str, Mapping[str, Tensor]],
    source: Path,
    dtype: torch.dtype,
) -> IPAdapter:
    numbers = layer_numbers(unet)
    if not projector or set(keys) != set(numbers):
        absent = sorted(set(numbers) - set(keys))
        shown = f", first {absent[0]}" if absent else ""
        raise UnsupportedModel(
            f"'{source}' has image prompts in {len(keys)} layers{shown}, and {len(projector)} "
            f"tensors of a resampler. Expected all {len(numbers)} layers of an IDM-VTON denoiser."
        )
    tensors = {f"image_proj.{name}": tensor for name, tensor in projector.items()}
    for layer, parts in keys.items():
        tensors |= {f"ip_adapter.{numbers[layer]}.{part}": t for part, t in parts.items()}
    return fill(
        lambda: IPAdapter(projector_of(projector), layer_widths(unet)),
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        what=f"the image prompt in '{source}'",
        expected="IDM-VTON's, an IP-Adapter-plus of SDXL",
    )
