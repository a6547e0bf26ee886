"""Public MVDream checkpoints into a stock UNet, and back (arXiv 2308.16512).

MVDream's UNet is Stable Diffusion's with four tensors more, its camera embedding, so it fits a
``UNet2DConditionModel(class_embed_type="projection", projection_class_embeddings_input_dim=16)``.
Its cameras are our ``c2w`` as they are (see ``camera_azimuth_deg``). Four layouts are around:

    ldm          bytedance/MVDream's own file: model.diffusion_model.*, camera_embed.{0,2}
    ldm_bare     the same names without that prefix, or with unet. (ashawkey, KokeCacao)
    camera_proj  diffusers' names, and linear_{1,2} in a folder camera_proj beside unet (lzq49);
                 with that prefix, they may be in one file as well
    stock        diffusers' names, with class_embedding.linear_{1,2}: ours

A .pt file is read by ``torch.load(weights_only=True)`` alone, which builds no objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from image_tools.diffusion.camera_embedding import CAMERA_WIDTH
from image_tools.diffusion.ldm_names import decoder_names, encoder_names, translate
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = [
    "Layout",
    "camera_azimuth_deg",
    "detect_layout",
    "find_mvdream_files",
    "from_stock",
    "read_mvdream_unet",
    "to_stock",
    "unet_config",
]

Layout = Literal["ldm", "ldm_bare", "camera_proj", "stock"]
LDM_PREFIX = "model.diffusion_model."
WRAPPER_PREFIX = "unet."
CAMERA_FOLDER = "camera_proj"
# Other parts of a whole checkpoint: autoencoder, text encoder, averaged weights, noise schedule.
OTHER_PARTS = re.compile(
    r"(first_stage_model|cond_stage_model|model_ema|vae|text_encoder|tokenizer)\."
    r"|(betas|log_one_minus_.*|sqrt_.*|alphas_cumprod.*|posterior_.*|logvar|lvlb_weights)$"
    r"|scale_factor$|model_ema"
)
IMAGE_PROMPT = re.compile(r"image_embed\.|to_[kv]_ip\.")
SHOWN_KEYS = 5
TRAINED_SIZE = 32  # latents of 256 px
CAMERA_NAMES = {
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
}


def camera_azimuth_deg(azimuth_deg: float) -> float:
    """MVDream's name for a camera that we call ``azimuth_deg``: 90 degrees more.

    MVDream counts azimuth from -y, so that its front, 90 degrees, is the camera on +x, as ours is.
    World, axes and hence camera matrices are the same: nothing is rotated, only the number differs.
    """
    return (azimuth_deg + 90.0) % 360.0


def detect_layout(keys: list[str]) -> Layout:
    """Which of the layouts the tensor names are of.

    Raises:
        UnsupportedModel: none of them, with the first names; or an ImageDream model.
    """
    if any(IMAGE_PROMPT.search(key) for key in keys):
        raise UnsupportedModel(
            "The checkpoint wants an image prompt (ImageDream). Expected MVDream, text only."
        )
    bare = [key.removeprefix(WRAPPER_PREFIX) for key in keys]
    if any(key.startswith(f"{LDM_PREFIX}camera_embed.") for key in keys):
        return "ldm"
    if any(key.startswith("camera_embed.") for key in bare):
        return "ldm_bare"
    if any(key.startswith("camera_proj.") for key in bare):
        return "camera_proj"
    if any(key.startswith("class_embedding.linear_1.") for key in bare):
        return "stock"
    shown = ", ".join(sorted(keys)[:SHOWN_KEYS])
    raise UnsupportedModel(
        f"No camera embedding among {len(keys)} tensors ({shown}, ...). Expected an MVDream "
        "denoiser: camera_embed.*, camera_proj.* or class_embedding.*."
    )


def unet_config(base: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the multi-view UNet from those of the Stable Diffusion it was trained from."""
    return {
        **{k: v for k, v in base.items() if not k.startswith("_")},
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": CAMERA_WIDTH,
        "sample_size": TRAINED_SIZE,
    }


def to_stock(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The UNet's tensors of any layout by their stock names.

    Args:
        tensors: a whole checkpoint or its UNet.
        config: settings of the UNet, as of :func:`unet_config`.

    Raises:
        UnsupportedModel: naming the first tensors that belong nowhere.
    """
    layout = detect_layout(list(tensors))
    prefix = LDM_PREFIX if layout == "ldm" else WRAPPER_PREFIX
    names = _ldm_to_stock(config)
    found, unknown = {}, []
    for key, tensor in tensors.items():
        name = key.removeprefix(prefix)
        if name == key and OTHER_PARTS.match(key):
            continue
        if layout in ("ldm", "ldm_bare"):
            name = translate(name, names)
        elif layout == "camera_proj":
            name = re.sub(r"^camera_proj\.", "class_embedding.", name)
        if name is None:
            unknown.append(key)
        else:
            found[name] = tensor
    if unknown:
        raise UnsupportedModel(
            f"{len(unknown)} tensors belong nowhere in an MVDream denoiser of these settings: "
            f"{', '.join(unknown[:SHOWN_KEYS])}. Expected the base model it was trained from."
        )
    return found


def from_stock(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], layout: Layout
) -> dict[str, Tensor]:
    """The inverse of :func:`to_stock`: the UNet's tensors by the names of ``layout``."""
    if layout == "stock":
        return dict(tensors)
    if layout == "camera_proj":
        return {re.sub(r"^class_embedding\.", "camera_proj.", k): t for k, t in tensors.items()}
    names = {stock: ldm for ldm, stock in _ldm_to_stock(config).items()}
    prefix = LDM_PREFIX if layout == "ldm" else ""
    return {prefix + translate(key, names): tensor for key, tensor in tensors.items()}


def find_mvdream_files(path: Path) -> list[Path]:
    """The denoiser's file: ``path`` itself, or the one in it or in its folder unet.

    Beside unet may be camera_proj, whose file is the second one.

    Raises:
        WeightsMissing: there is none, or several.
    """
    if path.is_file():
        return [path]
    for folder in (path / "unet", path):
        for kind in ("*.safetensors", "*.pt"):
            files = sorted(folder.glob(kind))
            if len(files) == 1:
                return files + sorted((path / CAMERA_FOLDER).glob(kind))[:1]
    raise WeightsMissing(
        f"Weights for the MVDream denoiser are missing: '{path}' is no file and holds no single "
        ".safetensors or .pt file, nor does its folder unet. Expected sd-v2.1-base-4view.pt of "
        "MVDream/MVDream, or a conversion of it; name the file."
    )


def read_mvdream_unet(
    files: Sequence[Path], base: Mapping[str, Any], dtype: torch.dtype
) -> UNet2DConditionModel:
    """Read a public checkpoint into a stock UNet.

    Args:
        files: of :func:`find_mvdream_files`.
        base: settings of the base model's UNet (its unet/config.json).
        dtype: number format of the result.

    Raises:
        UnsafeWeights: a .pt file with more than tensors in it.
        UnsupportedModel: tensors that do not belong, are missing, or have other shapes.
    """
    from diffusers import UNet2DConditionModel

    config = unet_config(base)
    read, *others = (_read_tensors(path) for path in files)
    for other in others:
        read |= {f"{CAMERA_FOLDER}.{name}": tensor for name, tensor in other.items()}
    tensors = {k: t.to(dtype) for k, t in to_stock(read, config).items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    expected = {name: tuple(t.shape) for name, t in unet.state_dict().items()}
    actual = {name: tuple(t.shape) for name, t in tensors.items()}
    if actual != expected:
        wrong = sorted(n for n in {*actual, *expected} if actual.get(n) != expected.get(n))
        said = ", ".join(
            f"{n} ({actual.get(n, 'absent')}, expected {expected.get(n, 'nothing')})"
            for n in wrong[:SHOWN_KEYS]
        )
        raise UnsupportedModel(
            f"'{files[0]}' does not fit the base model's denoiser in {len(wrong)} tensors: {said}. "
            "Name the Stable Diffusion it was trained from (2.1-base for sd-v2.1-base-4view)."
        )
    unet.load_state_dict(tensors, strict=True, assign=True)
    return unet


def _read_tensors(path: Path) -> dict[str, Tensor]:
    import pickle

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeWeights(
            f"'{path}' holds more than tensors, and reading it could run code. Expected a file of "
            "tensors only; convert it to .safetensors where you trust it."
        ) from error
    loaded = loaded.get("state_dict", loaded)
    return {k: v for k, v in loaded.items() if isinstance(v, Tensor)}


def _ldm_to_stock(config: Mapping[str, Any]) -> dict[str, str]:
    """Beginnings of LDM names and what diffusers calls them, for a UNet of these settings."""
    return {**encoder_names(config), **decoder_names(config), **CAMERA_NAMES}
