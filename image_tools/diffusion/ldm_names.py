"""Names of a UNet's tensors in the original latent-diffusion layout, and diffusers' for them.

Names are translated by their beginnings, so that what lies inside a block needs no table. What is
told apart beside a plain UNet (a camera embedding, ControlNet's own convolutions) is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["decoder_names", "encoder_names", "translate"]

SINGLE_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
}
RESNET_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def encoder_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Beginnings of original names and diffusers' for them: time, input, down and middle."""
    names = dict(SINGLE_NAMES)
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    place = 1
    for level, kind in enumerate(config["down_block_types"]):
        block = f"down_blocks.{level}"
        for layer in range(layers):
            _add_resnet(names, f"input_blocks.{place}.0", f"{block}.resnets.{layer}")
            if "CrossAttn" in kind:
                names[f"input_blocks.{place}.1"] = f"{block}.attentions.{layer}"
            place += 1
        if level < levels - 1:
            names[f"input_blocks.{place}.0.op"] = f"{block}.downsamplers.0.conv"
            place += 1
    for theirs, ours in (("0", "0"), ("2", "1")):
        _add_resnet(names, f"middle_block.{theirs}", f"mid_block.resnets.{ours}")
    return names


def decoder_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The same for up and output."""
    names = {"out.0": "conv_norm_out", "out.2": "conv_out"}
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    place = 0
    for level, kind in enumerate(config["up_block_types"]):
        block, attends = f"up_blocks.{level}", "CrossAttn" in kind
        for layer in range(layers + 1):
            _add_resnet(names, f"output_blocks.{place}.0", f"{block}.resnets.{layer}")
            if attends:
                names[f"output_blocks.{place}.1"] = f"{block}.attentions.{layer}"
            place += 1
        if level < levels - 1:
            last = f"output_blocks.{place - 1}.{2 if attends else 1}.conv"
            names[last] = f"{block}.upsamplers.0.conv"
    return names


def translate(key: str, names: Mapping[str, str]) -> str | None:
    """The name with its longest known beginning replaced, or None."""
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:end])
        if prefix in names:
            return ".".join([names[prefix], *parts[end:]])
    return None


def _add_resnet(names: dict[str, str], ldm: str, stock: str) -> None:
    for theirs, ours in RESNET_NAMES.items():
        names[f"{ldm}.{theirs}"] = f"{stock}.{ours}"
