"""Names of tensors in the original ControlNet layout (Stability's blocks), and diffusers' for them.

ControlNet and Uni-ControlNet both copy the encoder of Stable Diffusion, block by block, and end
each block with a convolution of its own. What they do with condition images is theirs and is told
by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["encoder_names", "hint_names", "translate"]

SINGLE_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block_out.0": "controlnet_mid_block",
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
    """Beginnings of original names and diffusers' for them, for an encoder of these settings."""
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
    for index in range(place):
        names[f"zero_convs.{index}.0"] = f"controlnet_down_blocks.{index}"
    return names


def hint_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The same for the convolutions that a ControlNet's condition image goes through."""
    part, count = "controlnet_cond_embedding", len(config["conditioning_embedding_out_channels"])
    blocks = 2 * (count - 1)
    names = {"input_hint_block.0": f"{part}.conv_in"}
    for index in range(blocks):
        names[f"input_hint_block.{2 * (index + 1)}"] = f"{part}.blocks.{index}"
    names[f"input_hint_block.{2 * (blocks + 1)}"] = f"{part}.conv_out"
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
