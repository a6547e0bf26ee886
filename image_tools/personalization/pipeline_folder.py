"""A trained prior as a stock diffusers folder: a copy of the one it came from with new weights.

Text encoders are written with the ``text_model.`` that older tools expect in names of CLIP weights
and that transformers gave up; stock loaders read both.

    write_pipeline(prior, pocket_folder(), Path("my-dog"), parts="unet")
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

import torch

from image_tools.diffusion.lora_names import add_text_model
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.weight_writing import write_safetensors
from renderers.errors import StudioError

__all__ = ["write_pipeline"]


def write_pipeline(
    prior: DiffusionPrior,
    base: Path,
    out: Path,
    *,
    parts: Literal["unet", "unet_and_text"],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the prior's weights into a copy of the folder it was loaded from.

    Args:
        prior: with its trained weights.
        base: the stock folder that it was loaded from.
        out: must not exist; appears whole or not at all.
        parts: what was trained; everything else is copied.
        dtype: number format of the new weights.

    Raises:
        StudioError: ``out`` exists.
    """
    if out.exists():
        raise StudioError(f"'{out}' exists - expected a new folder. Choose another, or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    folders = {"unet": "diffusion_pytorch_model"}
    if parts == "unet_and_text":
        folders |= dict.fromkeys(_encoder_names(base), "model")
    shutil.copytree(
        base, partial, ignore=lambda at, names: _weights(Path(at), names, base, set(folders))
    )
    modules: dict[str, torch.nn.Module] = {"unet": prior.unet}
    if parts == "unet_and_text":
        encoders = [tower.encoder for tower in prior.text.towers]
        modules |= dict(zip(_encoder_names(base), encoders, strict=True))
    for name, stem in folders.items():
        state = modules[name].state_dict()
        is_clip = any(key.startswith("encoder.layers.") for key in state)
        rename = add_text_model if is_clip else str
        tensors = {rename(key): value.to(dtype) for key, value in state.items()}
        write_safetensors(partial / name / f"{stem}.safetensors", tensors, {"format": "pt"})
    partial.replace(out)
    return out


def _encoder_names(base: Path) -> list[str]:
    """Folders of the text encoders, in the prior's order."""
    return [name for name in ("text_encoder", "text_encoder_2") if (base / name).is_dir()]


def _weights(at: Path, names: list[str], base: Path, replaced: set[str]) -> list[str]:
    """Weight files that get replaced, and what no folder of a model needs."""
    if at.parent != base or at.name not in replaced:
        return []
    endings = (".safetensors", ".bin", ".index.json")
    return [name for name in names if name.endswith(endings)]
