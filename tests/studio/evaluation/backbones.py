"""Random weights of the image-text score's backbone, by the names of its public version."""

from __future__ import annotations

import torch

from studio.evaluation.image_backbone import LiteBackbone

__all__ = ["public_weights"]


def public_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random tensors by the names of the backbone's public version."""
    found = {}

    def add(conv: str, norm: str, like: torch.nn.Conv2d) -> None:
        count = like.out_channels
        found[f"{conv}.weight"] = torch.randn(like.weight.shape, generator=generator) / 3
        for part in ("weight", "running_var"):
            found[f"{norm}.{part}"] = torch.rand(count, generator=generator) + 0.5
        for part in ("bias", "running_mean"):
            found[f"{norm}.{part}"] = torch.randn(count, generator=generator)

    net = LiteBackbone()
    add("_conv_stem", "_bn0", net.stem.conv)
    add("_conv_head", "_bn1", net.head.conv)
    for k, block in enumerate(net.blocks):
        if block.expand is not None:
            add(f"_blocks.{k}._expand_conv", f"_blocks.{k}._bn0", block.expand.conv)
        add(f"_blocks.{k}._depthwise_conv", f"_blocks.{k}._bn1", block.depthwise.conv)
        add(f"_blocks.{k}._project_conv", f"_blocks.{k}._bn2", block.project.conv)
    return found
