"""Tiny IP-Adapters with random weights, in memory and by the names of the public files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from image_tools.diffusion.attention import AttentionHub
from image_tools.personalization.ip_adapter import IPAdapter, new_ip_adapter
from image_tools.personalization.reference_features import ReferenceFeatures

__all__ = [
    "FACE_WIDTH",
    "IMAGE_WIDTH",
    "nested",
    "random_features",
    "random_lora_keys",
    "tiny_ip_adapter",
]

IMAGE_WIDTH, CLIP_TOKENS, FACE_WIDTH = 24, 7, 12


def tiny_ip_adapter(unet: nn.Module, variant: str = "base", **settings) -> IPAdapter:
    """An adapter whose keys and values are not the text's."""
    generator = torch.Generator().manual_seed(31)
    adapter = new_ip_adapter(
        unet,
        variant,
        image_width=IMAGE_WIDTH,
        generator=generator,
        **{"face_width": FACE_WIDTH, **settings},
    )
    with torch.no_grad():
        for parameter in adapter.ip_adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter.eval().requires_grad_(False)


def random_features(variant: str, images: int = 1, *, seed: int = 1) -> ReferenceFeatures:
    """What a variant reads of some images."""
    generator = torch.Generator().manual_seed(seed)
    clip = {
        "base": (images, IMAGE_WIDTH),
        "faceid": None,
    }.get(variant, (images, CLIP_TOKENS, IMAGE_WIDTH))
    face = torch.randn(images, FACE_WIDTH, generator=generator)
    return ReferenceFeatures(
        None if clip is None else torch.randn(clip, generator=generator),
        torch.nn.functional.normalize(face, dim=-1) if variant.startswith("faceid") else None,
    )


def random_lora_keys(unet: nn.Module, *, rank: int = 3) -> dict[str, Tensor]:
    """A LoRA on all attention by the names that faceid files have."""
    generator = torch.Generator().manual_seed(33)
    found = {}
    for layer in AttentionHub(unet).layers:
        attention = unet.get_submodule(layer.name)
        linears = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v}
        for name, linear in {**linears, "out": attention.to_out[0]}.items():
            rows, columns = linear.weight.shape
            prefix = f"{layer.index}.to_{name}_lora"
            found[f"{prefix}.down.weight"] = torch.randn(rank, columns, generator=generator) * 0.2
            found[f"{prefix}.up.weight"] = torch.randn(rows, rank, generator=generator) * 0.2
    return found


def nested(adapter: IPAdapter) -> dict[str, dict[str, Tensor]]:
    """An adapter as the public .bin files hold it."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.state_dict().items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor.clone()
    return parts
