"""CatVTON's public weights (zhengchong/CatVTON): the self-attention of an inpainting model.

A file is a list of every module whose name has attn1 in it, eight for each layer in the denoiser's
own order (down, up, mid): the layer, its four projections, the last of which is a list of two, and
the processor. They share their tensors, of which a file may hold any spelling:

    8k.to_q.weight = 8k+1.weight, likewise to_k and 8k+2, to_v and 8k+3
    8k.to_out.0.weight = 8k+4.0.weight = 8k+5.weight, likewise its bias

    load_attention(unet, read_tensors([file], "CatVTON"))
    write_attention(unet, folder)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from image_tools.diffusion.attention import AttentionHub
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.errors import UnsupportedModel

__all__ = ["FILE_NAME", "load_attention", "self_attention", "write_attention"]

FILE_NAME = "model.safetensors"
MODULES_PER_LAYER = 8
# What each of the eight modules' tensors are called in the layer; the processor and dropout have
# none.
PREFIXES = ("", "to_q.", "to_k.", "to_v.", "to_out.", "to_out.0.")
SHOWN_KEYS = 5


def self_attention(unet: nn.Module) -> list[nn.Module]:
    """The layers that are trained, in the order of the file."""
    names = [layer.name for layer in AttentionHub(unet).layers if not layer.is_cross]
    return [unet.get_submodule(name) for name in names]


def load_attention(unet: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors of a file in the place of a denoiser's own.

    Raises:
        UnsupportedModel: they are not those of this denoiser's self-attention.
    """
    layers = self_attention(unet)
    found: list[dict[str, Tensor]] = [{} for _ in layers]
    unknown = []
    for key, tensor in tensors.items():
        number, _, rest = key.partition(".")
        layer, module = divmod(int(number), MODULES_PER_LAYER) if number.isdigit() else (-1, 0)
        if not 0 <= layer < len(layers) or module >= len(PREFIXES):
            unknown.append(key)
            continue
        found[layer][PREFIXES[module] + rest] = tensor
    for number, (layer, own) in enumerate(zip(layers, found, strict=True)):
        wanted = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
        actual = {name: tuple(t.shape) for name, t in own.items()}
        wrong = sorted(n for n in {*wanted, *actual} if wanted.get(n) != actual.get(n))
        unknown += [
            f"{number * MODULES_PER_LAYER}.{n} ({actual.get(n, 'absent')}, expected "
            f"{wanted.get(n, 'nothing')})"
            for n in wrong
        ]
    if unknown:
        raise UnsupportedModel(
            f"{len(unknown)} tensors do not fit the denoiser's {len(layers)} layers of "
            f"self-attention: {', '.join(unknown[:SHOWN_KEYS])}. Expected CatVTON's attention for "
            "the denoiser of Stable Diffusion 1.5's inpainting model."
        )
    for layer, own in zip(layers, found, strict=True):
        parameter = layer.to_q.weight
        layer.load_state_dict({name: tensor.to(parameter) for name, tensor in own.items()})


def write_attention(unet: nn.Module, folder: Path) -> Path:
    """Write a denoiser's self-attention in the layout of the public files; returns the file."""
    tensors = {
        f"{MODULES_PER_LAYER * number}.{name}": tensor.detach().clone()
        for number, layer in enumerate(self_attention(unet))
        for name, tensor in layer.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / FILE_NAME, tensors, {"format": "pt"})
    return folder / FILE_NAME
