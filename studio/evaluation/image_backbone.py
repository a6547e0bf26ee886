"""EfficientNet-lite0 (Tan and Le, arXiv 1905.11946, in its "lite" form) as a feature extractor.

The lite form has no squeeze-and-excitation and clips at 6, see the TensorFlow TPU models. Batch
norms are folded into the convolutions, and the classifier is left out: what remains are the means
of the last 1280 channels over the image. Strided convolutions pad as TensorFlow does, more at the
bottom and right.

    features = LiteBackbone()(images)      # [b, 3, h, w] in 0..1 to [b, 1280]
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FEATURES", "LiteBackbone", "folded_weights"]

FEATURES = 1280
STEM = 32
STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel, stride of the first, expansion, and channels of each stage (Table 1)."""
MEAN, SCALE = 127.0 / 255.0, 255.0 / 128.0
NORM_EPS = 1e-3


class _Conv(nn.Module):
    """A convolution with the padding of TensorFlow."""

    def __init__(
        self, before: int, after: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return self.conv(F.pad(x, pads) if any(pads) else x)


class _Block(nn.Module):
    """An inverted bottleneck: expand, convolve each channel by itself, project."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = _Conv(before, inner) if expansion > 1 else None
        self.depthwise = _Conv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = _Conv(inner, after)
        self.is_residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.is_residual else y


class LiteBackbone(nn.Module):
    """From images to features, 3.4 million parameters."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.stem = _Conv(3, STEM, 3, stride=2)
        blocks, before = [], STEM
        for repeats, kernel, stride, expansion, after in STAGES:
            for k in range(repeats):
                blocks.append(_Block(before, after, kernel, stride if k == 0 else 1, expansion))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = _Conv(before, FEATURES)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b features"]:
        """Means over the image of the last channels; the sides are best multiples of 32."""
        x = F.relu6(self.stem((images - MEAN) * SCALE))
        return F.relu6(self.head(self.blocks(x))).mean((2, 3))


def folded_weights(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`LiteBackbone` from those of its public PyTorch version.

    Args:
        source: tensors such as ``_blocks.3._expand_conv.weight`` and ``_bn0.running_mean``; the
            classifier's are not read.
    """
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    count = sum(stage[0] for stage in STAGES)
    for k in range(count):
        parts = {"expand": ("_expand_conv", "_bn0")} if f"_blocks.{k}._bn0.weight" in source else {}
        parts |= {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        for part, (conv, norm) in parts.items():
            names[f"blocks.{k}.{part}"] = (f"_blocks.{k}.{conv}", f"_blocks.{k}.{norm}")
    found = {}
    for name, (conv, norm) in names.items():
        mean, variance = source[f"{norm}.running_mean"], source[f"{norm}.running_var"]
        gain = source[f"{norm}.weight"] / (variance + NORM_EPS).sqrt()
        found[f"{name}.conv.weight"] = source[f"{conv}.weight"] * gain[:, None, None, None]
        found[f"{name}.conv.bias"] = source[f"{norm}.bias"] - mean * gain
    return {name: tensor.clone() for name, tensor in found.items()}
