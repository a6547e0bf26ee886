"""Names of tensors in the original ControlNet layout, and diffusers' for them.

ControlNet and Uni-ControlNet both copy the encoder of Stable Diffusion, block by block, and end
each block with a convolution of its own. What they do with condition images is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_tools.diffusion.ldm_names import encoder_names

__all__ = ["control_names", "hint_names"]

SINGLE_NAMES = {
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block_out.0": "controlnet_mid_block",
}


def control_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Beginnings of original names and diffusers' for them, for a control of these settings."""
    levels = len(config["block_out_channels"])
    blocks = levels * (config["layers_per_block"] + 1)  # the input, layers, and steps down between
    ends = {f"zero_convs.{k}.0": f"controlnet_down_blocks.{k}" for k in range(blocks)}
    return {**encoder_names(config), **SINGLE_NAMES, **ends}


def hint_names(config: Mapping[str, Any]) -> dict[str, str]:
    """The same for the convolutions that a ControlNet's condition image goes through."""
    part, count = "controlnet_cond_embedding", len(config["conditioning_embedding_out_channels"])
    blocks = 2 * (count - 1)
    names = {"input_hint_block.0": f"{part}.conv_in"}
    for index in range(blocks):
        names[f"input_hint_block.{2 * (index + 1)}"] = f"{part}.blocks.{index}"
    names[f"input_hint_block.{2 * (blocks + 1)}"] = f"{part}.conv_out"
    return names
