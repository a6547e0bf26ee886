"""InstantID in files: the layout of InstantX/InstantID, and what is trained here.

ControlNetModel/config.json
ControlNetModel/diffusion_pytorch_model.safetensors
ip-adapter.bin          {image_proj, ip_adapter}, or ip-adapter.safetensors with flat names

parts = read_instant_id(Path("~/models/InstantID"), prior.unet)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from image_tools.control.control_configs import ControlConfig
from image_tools.control.control_weights import read_controlnet
from image_tools.diffusion.stock_modules import write_module
from image_tools.errors import WeightsMissing
from image_tools.personalization.instant_id import InstantID
from image_tools.personalization.ip_adapter_files import read_ip_adapter, write_ip_adapter

__all__ = ["read_instant_id", "write_instant_id"]

NET_FOLDER = "ControlNetModel"
ADAPTER_STEM = "ip-adapter"


def read_instant_id(
    folder: Path | str, unet: nn.Module, dtype: torch.dtype = torch.float32
) -> InstantID:
    """Read both parts for a denoiser, frozen.

    Raises:
        WeightsMissing: one is absent or damaged; UnsafeWeights: a pickle with more than tensors.
        UnsupportedModel: weights of another denoiser, or of another tool.
    """
    folder = Path(folder).expanduser()
    files = [folder / f"{ADAPTER_STEM}{suffix}" for suffix in (".safetensors", ".bin")]
    found = [path for path in files if path.is_file()]
    if not found or not (folder / NET_FOLDER).is_dir():
        absent = f"{NET_FOLDER}/" if found else f"{ADAPTER_STEM}.safetensors or .bin"
        raise WeightsMissing(
            f"Weights for InstantID are incomplete: no {absent} in '{folder}'. Expected the layout "
            f"of InstantX/InstantID: {NET_FOLDER}/ and {ADAPTER_STEM}.bin."
        )
    adapter = read_ip_adapter(found[0], unet, dtype).adapter
    net = read_controlnet(ControlConfig(weights=str(folder / NET_FOLDER)), dtype)
    return InstantID(adapter, net)


def write_instant_id(folder: Path, parts: InstantID) -> None:
    """Write both parts, the adapter without pickling."""
    folder.mkdir(parents=True, exist_ok=True)
    write_module(parts.net, folder / NET_FOLDER)
    write_ip_adapter(folder / f"{ADAPTER_STEM}.safetensors", parts.adapter)
