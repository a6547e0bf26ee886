"""From an IP-Adapter's configuration to a prior that is shown its pictures.

prior = load_ip_adapter_prior(config, prior)
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.ip_adapter import IPAdapter
from image_tools.personalization.ip_adapter_configs import IPAdapterConfig
from image_tools.personalization.ip_adapter_files import read_ip_adapter
from image_tools.personalization.ip_adapter_lora import SwitchedLora
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.photos import load_photo
from image_tools.personalization.reference_features import ReferenceFeatures, encode_references
from image_tools.personalization.tensor_files import read_flat
from image_tools.pocket.paths import adapter_path
from image_tools.vision.clip_images import load_clip_images

__all__ = ["load_ip_adapter_prior"]

FACE_KEY = "embedding"


def load_ip_adapter_prior(config: IPAdapterConfig, prior: DiffusionPrior) -> IPAdapterPrior:
    """A prior with the adapter, the images and the face that a config names.

    Raises:
        WeightsMissing: something is absent or damaged; UnsafeWeights: an unsafe pickle.
        UnsupportedModel: the adapter was made for another denoiser or image encoder.
        PhotosError: a picture cannot be read.
    """
    path = adapter_path(config.weights, role="IP-Adapter")
    file = read_ip_adapter(path, prior.unet, prior.dtype, structure=config.structure)
    adapter, device = file.adapter.to(prior.device), prior.device
    part = adapter.image_proj.clip
    clip = images = None
    if part != "nothing":
        if config.image_encoder is None or not config.images:
            absent = "image_encoder" if config.image_encoder is None else "images"
            raise WeightsMissing(
                f"{absent}: is empty, and '{path.name}' ({adapter.image_proj.variant}) reads "
                "pictures by CLIP - expected the vision model it was trained with, and pictures."
            )
        clip = load_clip_images(config.image_encoder, device, prior.dtype)
        read = [load_photo(each, size=clip.side, config=config.photos) for each in config.images]
        images = torch.stack(read).to(device)
    face = _read_face(config, adapter, device)
    present, absent = encode_references(images, part=part, clip=clip, face=face)
    _check_width(adapter, present, config)
    masks = None
    if config.masks:
        read = [load_photo(mask, size=prior.image_size) for mask in config.masks]
        masks = torch.stack(read).mean(dim=-1).to(device)
    lora = None
    if file.lora is not None and config.lora_scale != 0.0:
        lora = SwitchedLora(prior, file.lora, weight=config.lora_scale)
    shown = IPAdapterPrior(
        prior,
        adapter,
        scale=config.scale,
        blocks=config.blocks,
        masks=masks,
        window=(config.start, config.end),
        fade=config.fade,
        lora=lora,
    )
    shown.show(present, absent)
    return shown


def _read_face(
    config: IPAdapterConfig, adapter: IPAdapter, device: torch.device
) -> Float[Tensor, "faces width"] | None:
    """Identities, where the adapter wants some."""
    variant = adapter.image_proj.variant
    if variant not in ("faceid", "faceid_plus"):
        return None
    if config.face is None:
        raise WeightsMissing(
            f"face: is empty, and '{config.weights}' ({variant}) reads identities - expected a "
            f".safetensors file with the tensor '{FACE_KEY}', one row for each face."
        )
    tensors = read_flat(Path(config.face).expanduser(), "face")
    face, wanted = tensors.get(FACE_KEY), adapter.image_proj.proj[0].in_features
    if face is None or face.ndim != 2 or face.shape[1] != wanted:
        found = "absent" if face is None else f"of shape {list(face.shape)}"
        raise UnsupportedModel(
            f"face: '{FACE_KEY}' in '{config.face}' is {found} - expected [faces, {wanted}], the "
            "identities that the adapter was trained with."
        )
    return face.to(device, torch.float32)


def _check_width(adapter: IPAdapter, features: ReferenceFeatures, config: IPAdapterConfig) -> None:
    """CLIP models of other sizes make features of another width."""
    if features.clip is None:
        return
    projector = adapter.image_proj
    first = {
        "base": lambda: projector.proj,
        "plus": lambda: projector.proj_in,
        "full": lambda: projector.proj[0],
        "faceid_plus": lambda: projector.perceiver_resampler.proj_in,
    }[projector.variant]()
    found, wanted = features.clip.shape[-1], first.in_features
    if found != wanted:
        raise UnsupportedModel(
            f"image_encoder: '{config.image_encoder}' makes {found} numbers, and "
            f"'{config.weights}' ({projector.variant}) reads {wanted} - expected the encoder that "
            "the adapter was trained with (ViT-H: 1024 and 1280, bigG: 1280 and 1664)."
        )
