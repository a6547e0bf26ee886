"""From an IP-Adapter's configuration to a prior that is shown its pictures.

prior = load_ip_adapter_prior(config, prior)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.ip_adapter import IPAdapter
from image_tools.personalization.ip_adapter_configs import IPAdapterConfig, IPVariant
from image_tools.personalization.ip_adapter_files import read_ip_adapter
from image_tools.personalization.ip_adapter_lora import SwitchedLora
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.photos import load_photo
from image_tools.personalization.reference_features import ReferenceFeatures, encode_references
from image_tools.pocket.paths import adapter_path
from image_tools.vision.clip_images import ClipImages, load_clip_images
from image_tools.vision.face_alignment import aligned_face
from image_tools.vision.faces import load_face_image, main_face
from image_tools.vision.identity_files import check_identity, read_identity

__all__ = ["load_ip_adapter_prior"]

# What the names of public files say, and their tensors do not.
SECOND_VERSION = "plusv2"
# insightface's models that the public faceid weights were trained with.
FACE_PACK = "buffalo_l"


def load_ip_adapter_prior(config: IPAdapterConfig, prior: DiffusionPrior) -> IPAdapterPrior:
    """A prior with the adapter, the images and the faces that a config names.

    Raises:
        WeightsMissing: something is absent or damaged; UnsafeWeights: an unsafe pickle.
        UnsupportedModel: the adapter was made for another denoiser, encoder or kind of identity.
        PhotosError: a picture cannot be read; FaceNotFound: it shows no face.
    """
    path = adapter_path(config.weights, role="IP-Adapter")
    file = read_ip_adapter(path, prior.unet, prior.dtype, structure=config.structure)
    _check_variant(config, file.adapter.image_proj.variant)
    adapter, device = file.adapter.to(prior.device), prior.device
    present, absent = _features(config, adapter, device, prior.dtype)
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


def _check_variant(config: IPAdapterConfig, variant: IPVariant) -> None:
    """Settings that the file's variant does not read, or that it cannot do without."""
    if config.identities and not variant.startswith("faceid"):
        raise UnsupportedModel(
            f"identities are given, and '{config.weights}' ({variant}) reads no face - expected a "
            "faceid adapter. Name one, or leave identities out."
        )
    name = Path(config.weights).name.lower()
    if variant == "faceid_plus" and config.structure is None and SECOND_VERSION in name:
        raise UnsupportedModel(
            f"structure is empty with '{config.weights}', which by its name is of version 2 - "
            "expected a factor of the face's structure, 1.0 as published. Set tool.structure=1.0."
        )


def _features(
    config: IPAdapterConfig, adapter: IPAdapter, device: torch.device, dtype: torch.dtype
) -> tuple[ReferenceFeatures, ReferenceFeatures]:
    """What the encoders see of the images, and what stands where there is none."""
    variant, part = adapter.image_proj.variant, adapter.image_proj.clip
    clip = images = face = None
    if part != "nothing":
        clip = _load_clip(config, variant, device, dtype)
        images = _images(config, clip.side).to(device)
    if variant.startswith("faceid"):
        face, crops = _faces(config, adapter.image_proj.proj[0].in_features, device)
        if clip is not None and crops is not None:  # faceid_plus was trained on aligned faces
            images = torch.stack([crop(clip.side) for crop in crops]).to(device)
    present, absent = encode_references(images, part=part, clip=clip, face=face)
    _check_width(adapter, present, config)
    return present, absent


def _load_clip(
    config: IPAdapterConfig, variant: IPVariant, device: torch.device, dtype: torch.dtype
) -> ClipImages:
    for name in ("image_encoder", "images"):
        if not getattr(config, name):
            raise WeightsMissing(
                f"{name}: is empty, and '{config.weights}' ({variant}) reads pictures by CLIP - "
                "expected the vision model it was trained with, and pictures."
            )
    return load_clip_images(config.image_encoder, device, dtype)


def _images(config: IPAdapterConfig, size: int) -> Float[Tensor, "images size size 3"]:
    read = [load_photo(path, size=size, config=config.photos) for path in config.images]
    return torch.stack(read)


def _faces(
    config: IPAdapterConfig, width: int, device: torch.device
) -> tuple[Float[Tensor, "faces width"], list[Callable[[int], Tensor]] | None]:
    """Identities, and how to cut each face out at a size; None where they come from files."""
    if config.identities:
        read = [read_identity(path, width=width) for path in config.identities]
        found, crops = torch.stack(read), None
    else:
        from image_tools.vision.face_analyzers import build_face_analyzer

        analyzer = build_face_analyzer(config.faces, device, pack=FACE_PACK)
        source = f"faces '{config.faces.kind}'"
        check_identity(torch.zeros(analyzer.width), width=width, source=source)
        photos = [load_face_image(path) for path in config.images]
        faces = [
            main_face(analyzer, photo, name=path)
            for photo, path in zip(photos, config.images, strict=True)
        ]
        found = torch.stack([face.embedding for face in faces])
        crops = [partial(_cut, photo, face.kps) for photo, face in zip(photos, faces, strict=True)]
    return (F.normalize(found, dim=-1) if config.normed else found).to(device), crops


def _cut(photo: Tensor, kps: Tensor, size: int) -> Float[Tensor, "s s 3"]:
    return aligned_face(photo, kps, size=size)


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
