"""PhotoMaker's files (arXiv 2312.04461): the ID encoder and the denoiser's LoRA in one.

    photomaker-v1.bin   {"id_encoder": {...}, "lora_weights": {...}}, by torch
    .safetensors        the same tensors with id_encoder. and lora_weights. before their names

v2 is what has a ``qformer_perceiver``. Sizes are read off the tensors. The LoRA may be in any
layout, such as the attention processors' of old diffusers; it is written in diffusers' with
alpha = rank, because a .bin has no place for another.

    maker = read_photomaker(Path("photomaker-v1.bin"))
    write_photomaker(Path("mine.safetensors"), maker)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from image_tools.diffusion.loading import readable_weights
from image_tools.diffusion.lora_deltas import LoraFile
from image_tools.diffusion.lora_layouts import lora_from_tensors, lora_to_tensors
from image_tools.errors import UnsupportedModel
from image_tools.personalization.photomaker_encoder import (
    FaceShape,
    IdEncoder,
    IdEncoderShape,
    new_id_encoder,
)
from image_tools.personalization.tensor_files import fill, read_flat, tensors_under, write_flat

__all__ = ["PhotoMakerFile", "encoder_shape", "read_photomaker", "write_photomaker"]

ROLE = "PhotoMaker"
ENCODER, LORA = "id_encoder.", "lora_weights."
EXPECTED = "photomaker-v1 or photomaker-v2 as .bin or .safetensors"
FACE_READER = "qformer_perceiver."
# Not a weight; files of older transformers have it.
IGNORED = "vision_model.embeddings.position_ids"
SHOWN_KEYS = 4


@dataclass(frozen=True)
class PhotoMakerFile:
    """What one file holds."""

    encoder: IdEncoder
    """Photos to rows for prompts, and what puts them there."""
    lora: LoraFile
    """What the denoiser must be changed by to understand such rows."""


def read_photomaker(path: Path, *, layers_per_block: int = 2) -> PhotoMakerFile:
    """Read a file of either version, float32.

    Args:
        path: a .bin or .safetensors file.
        layers_per_block: ResNets in each down block of the denoiser that it is for.

    Raises:
        WeightsMissing: it is absent, damaged or incomplete; UnsafeWeights if it holds more than
            tensors.
        UnsupportedModel: it is something else.
    """
    tensors = read_flat(path, ROLE)
    own = _part(tensors, ENCODER, path)
    own.pop(IGNORED, None)
    with readable_weights(path, ROLE):
        shape = encoder_shape(own)
        lora = lora_from_tensors(_part(tensors, LORA, path), {}, layers_per_block=layers_per_block)
    encoder = fill(
        partial(new_id_encoder, shape),
        {name: tensor.float() for name, tensor in own.items()},
        what=f"The ID encoder in '{path}'",
        expected=EXPECTED,
    )
    encoder.restore_places()
    return PhotoMakerFile(encoder, lora)


def write_photomaker(path: Path, maker: PhotoMakerFile) -> None:
    """Write a file; it appears whole or not at all. A name that ends in .bin makes torch's kind."""
    lora, _ = lora_to_tensors(maker.lora, layout="diffusers")
    tensors = {f"{ENCODER}{name}": t for name, t in maker.encoder.state_dict().items()}
    write_flat(path, tensors | {f"{LORA}{name}": t for name, t in lora.items()})


def encoder_shape(tensors: Mapping[str, Tensor]) -> IdEncoderShape:
    """Sizes of an ID encoder, read off its tensors.

    Raises:
        KeyError: a tensor that tells one is missing.
    """
    embeddings = "vision_model.embeddings"
    hidden, _, patch, _ = tensors[f"{embeddings}.patch_embedding.weight"].shape
    grid = round((len(tensors[f"{embeddings}.position_embedding.weight"]) - 1) ** 0.5)
    first, second = (tensors[f"visual_projection{end}.weight"] for end in ("", "_2"))
    has_face = any(name.startswith(FACE_READER) for name in tensors)
    return IdEncoderShape(
        image_size=grid * patch,
        patch_size=patch,
        hidden=hidden,
        intermediate=len(tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        layers=_count(tensors, "vision_model.encoder.layers."),
        projections=(len(first), len(second)),
        face=_face_shape(tensors, len(first) + len(second)) if has_face else None,
    )


def _face_shape(tensors: Mapping[str, Tensor], text_width: int) -> FaceShape:
    hidden, width = tensors[f"{FACE_READER}token_proj.0.weight"].shape
    return FaceShape(
        width=width,
        hidden=hidden,
        tokens=len(tensors[f"{FACE_READER}token_proj.2.weight"]) // text_width,
        depth=_count(tensors, f"{FACE_READER}perceiver_resampler.layers."),
    )


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of layers whose tensors' names begin so."""
    names = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
    return len({name.partition(".")[0] for name in names})


def _part(tensors: Mapping[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    """The tensors of one part by their own names."""
    found = tensors_under(tensors, prefix)
    if not found:
        shown = ", ".join(sorted(tensors)[:SHOWN_KEYS]) or "nothing"
        raise UnsupportedModel(
            f"'{path}' has no {prefix}* (it holds {shown}). Expected {EXPECTED}."
        )
    return found
