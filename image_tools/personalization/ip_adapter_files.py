"""IP-Adapters in files: h94/IP-Adapter, h94/IP-Adapter-FaceID, and what is trained here.

    image_proj.*                        the projector; names tell the variant, shapes the sizes
    ip_adapter.1.to_k_ip.weight         keys of the first layer that looks at text; values likewise
    ip_adapter.0.to_q_lora.down.weight  faceid: a LoRA of rank 128 on all attention, alpha = rank

in .safetensors, or as dictionaries in .bin. Heads of resamplers are 64 wide.

    file = read_ip_adapter(Path("ip-adapter-plus_sd15.safetensors"), prior.unet)
    write_ip_adapter(Path("mine.safetensors"), file.adapter)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ip_adapter import (
    HEAD_WIDTH,
    EmbedProjector,
    FacePlusProjector,
    FaceProjector,
    FullProjector,
    IPAdapter,
    PlusProjector,
    layer_widths,
)
from image_tools.personalization.ip_adapter_configs import IPVariant
from image_tools.personalization.perceiver import PerceiverSettings
from image_tools.personalization.tensor_files import fill, read_flat, tensors_under, write_flat

__all__ = ["IPAdapterFile", "projector_of", "read_ip_adapter", "variant_of", "write_ip_adapter"]

ROLE = "IP-Adapter"
PARTS = ("image_proj.", "ip_adapter.")
LORA = re.compile(r"(\d+)\.to_(q|k|v|out)_lora\.(down|up)\.weight")
LAYER = re.compile(r"(?:perceiver_resampler\.)?layers\.(\d+)\.0\.to_q\.weight")
# What only the projector of one variant has; the first that is there counts.
MARKS: dict[str, IPVariant] = {
    "perceiver_resampler.proj_in.weight": "faceid_plus",
    "latents": "plus",
    "proj.3.weight": "full",
    "proj.weight": "base",
    "proj.2.weight": "faceid",
}
SHOWN_KEYS = 5


@dataclass(frozen=True)
class IPAdapterFile:
    """What a file holds."""

    adapter: IPAdapter
    lora: LoraFile | None = None
    """Beside it, for faceid variants."""


def variant_of(names: Mapping[str, Tensor]) -> IPVariant:
    """What an adapter reads, by its projector's tensors.

    Raises:
        UnsupportedModel: they are those of something else.
    """
    for mark, variant in MARKS.items():
        if mark in names:
            return variant
    shown = ", ".join(sorted(names)[:SHOWN_KEYS])
    raise UnsupportedModel(
        f"No projector of an IP-Adapter among {len(names)} tensors of image_proj ({shown}). "
        "Expected a file of h94/IP-Adapter or h94/IP-Adapter-FaceID, or one trained here."
    )


def projector_of(tensors: Mapping[str, Tensor], *, structure: float | None = None) -> nn.Module:
    """An empty projector of the variant and the sizes that its tensors have.

    Args:
        tensors: by the projector's names.
        structure: see ``IPAdapterConfig``.

    Raises:
        UnsupportedModel: it is none, or a structure is given that the variant does not have.
    """
    variant = variant_of(tensors)
    if structure is not None and variant != "faceid_plus":
        raise UnsupportedModel(
            f"structure is {structure} with an adapter that is a {variant} - expected a "
            "faceid_plus of version 2. Leave structure out."
        )
    if variant == "faceid_plus":
        settings = _perceiver_of(tensors, "perceiver_resampler.")
        tokens, face_width = _face_sizes(tensors, settings.width)
        return FacePlusProjector(settings, tokens, face_width, structure)
    if variant == "plus":
        return PlusProjector(_perceiver_of(tensors, ""))
    if variant == "full":
        text_width, image_width = tensors["proj.2.weight"].shape
        return FullProjector(image_width, text_width)
    text_width = len(tensors["norm.weight"])
    if variant == "faceid":
        return FaceProjector(text_width, *_face_sizes(tensors, text_width))
    rows, image_width = tensors["proj.weight"].shape
    return EmbedProjector(image_width, text_width, rows // text_width)


def read_ip_adapter(
    path: Path,
    unet: nn.Module,
    dtype: torch.dtype = torch.float32,
    *,
    structure: float | None = None,
) -> IPAdapterFile:
    """Read an adapter for a denoiser.

    Raises:
        WeightsMissing: absent or damaged; UnsafeWeights: a .bin file with more than tensors in it.
        UnsupportedModel: it was made for another denoiser, or is something else.
    """
    path = path.expanduser()
    flat = read_flat(path, ROLE)
    parts = {part: tensors_under(flat, part) for part in PARTS}
    if not all(parts.values()):
        shown = ", ".join(sorted(flat)[:SHOWN_KEYS])
        raise UnsupportedModel(
            f"'{path}' holds no IP-Adapter ({shown}, ...). Expected image_proj.* and ip_adapter.*."
        )
    lora = {k: t for k, t in parts["ip_adapter."].items() if LORA.fullmatch(k)}
    tensors = {name: t.to(dtype) for name, t in flat.items() if name.startswith(PARTS)}
    tensors = {k: t for k, t in tensors.items() if k.removeprefix(PARTS[1]) not in lora}

    def build() -> IPAdapter:
        projector = projector_of(parts["image_proj."], structure=structure)
        return IPAdapter(projector, layer_widths(unet))

    adapter = fill(
        build,
        tensors,
        what=f"'{path}' with this prior's denoiser",
        expected="an IP-Adapter of the prior's own family",
    )
    return IPAdapterFile(adapter, _lora_of(lora, unet) if lora else None)


def write_ip_adapter(path: Path, adapter: IPAdapter, *, dtype: torch.dtype | None = None) -> None:
    """Write an adapter in the layout that the ending means; ``dtype`` None keeps its own format."""
    state = adapter.state_dict()
    write_flat(path, {n: t if dtype is None else t.to(dtype) for n, t in state.items()})


def _perceiver_of(tensors: Mapping[str, Tensor], prefix: str) -> PerceiverSettings:
    def shape(name: str) -> torch.Size:
        return tensors[prefix + name].shape

    own = shape("latents")[1] if prefix + "latents" in tensors else PerceiverSettings.tokens
    return PerceiverSettings(
        image_width=shape("proj_in.weight")[1],
        width=shape("proj_in.weight")[0],
        text_width=shape("proj_out.weight")[0],
        depth=sum(LAYER.fullmatch(name) is not None for name in tensors),
        heads=shape("layers.0.0.to_q.weight")[0] // HEAD_WIDTH,
        tokens=own,
    )


def _face_sizes(tensors: Mapping[str, Tensor], width: int) -> tuple[int, int]:
    """Tokens of each face, and numbers of an identity."""
    return tensors["proj.2.weight"].shape[0] // width, tensors["proj.0.weight"].shape[1]


def _lora_of(tensors: Mapping[str, Tensor], unet: nn.Module) -> LoraFile:
    """The LoRA by the denoiser's names."""
    layers = AttentionHub(unet).layers
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, target, half = LORA.fullmatch(key).groups()
        if int(index) >= len(layers):
            raise UnsupportedModel(
                f"The file's LoRA changes layer {index} of attention, and the denoiser has "
                f"{len(layers)}. Expected an IP-Adapter of the prior's own family."
            )
        ending = "to_out.0" if target == "out" else f"to_{target}"
        halves.setdefault(f"{layers[int(index)].name}.{ending}", {})[half] = tensor
    return LoraFile(
        {
            "unet": {
                name: LoraDelta(both["down"], both["up"], alpha=float(len(both["down"])))
                for name, both in halves.items()
            }
        }
    )
