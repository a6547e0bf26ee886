"""MS-Diffusion's adapters in files, by the names that the published one has.

``ms_adapter.bin`` of doge1516/MS-Diffusion holds {image_proj, ms_adapter, dummy_image_tokens}, as
``tensor_files`` reads and writes it; a .safetensors file has the same names joined by dots. Sizes
are read off the tensors; heads of the resampler are 64 wide.

    adapter = read_ms_adapter(Path("ms_adapter.bin"), prior.unet)
    write_ms_adapter(Path("mine.safetensors"), adapter)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from image_tools.errors import UnsupportedModel
from image_tools.personalization.ms_diffusion import MSAdapter
from image_tools.personalization.ms_diffusion_configs import MSShape
from image_tools.personalization.ms_diffusion_resampler import BOX_WIDTH, HEAD_WIDTH
from image_tools.personalization.tensor_files import fill, read_flat, write_flat

__all__ = ["read_ms_adapter", "shape_of", "write_ms_adapter"]

ROLE = "MS-Diffusion"
LAYERS = re.compile(r"image_proj\.layers\.(\d+)\.0\.to_q\.weight")


def shape_of(tensors: Mapping[str, Tensor]) -> MSShape:
    """Sizes of an adapter from its tensors.

    Raises:
        UnsupportedModel: some that say so are not there.
    """
    try:
        tokens, dim = tensors["image_proj.grounding_latents"].shape[1:]
        return MSShape(
            image_width=tensors["image_proj.proj_in.weight"].shape[1],
            phrase_width=tensors["image_proj.latent_proj.0.weight"].shape[1] - BOX_WIDTH,
            text_width=tensors["image_proj.proj_out.weight"].shape[0],
            dim=dim,
            heads=tensors["image_proj.layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH,
            depth=sum(LAYERS.fullmatch(name) is not None for name in tensors),
            tokens=tokens,
            dummies=tensors["dummy_image_tokens"].shape[1],
        )
    except KeyError as error:
        raise UnsupportedModel(
            f"No {error} among {len(tensors)} tensors. Expected an adapter of MS-Diffusion with "
            "its grounding resampler: image_proj.*, ms_adapter.*, dummy_image_tokens."
        ) from error


def read_ms_adapter(path: Path, unet: nn.Module, dtype: torch.dtype = torch.float32) -> MSAdapter:
    """The adapter in a file, for a denoiser.

    Raises:
        WeightsMissing: absent or damaged; UnsafeWeights: a .bin file with more than tensors in it.
        UnsupportedModel: an adapter of another denoiser, or something else.
    """
    path = path.expanduser()
    tensors = {name: tensor.to(dtype) for name, tensor in read_flat(path, ROLE).items()}
    return fill(
        partial(MSAdapter, unet, shape_of(tensors)),
        tensors,
        what=f"'{path}'",
        expected="an adapter that was trained for this prior; the published one is for SDXL",
    )


def write_ms_adapter(path: Path, adapter: MSAdapter) -> None:
    """Write an adapter: the published layout for .bin, its flat names for .safetensors."""
    write_flat(path, adapter.state_dict())
