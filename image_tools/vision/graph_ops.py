"""Operations of small vision networks, as TensorFlow defines them and in its layout [b, h, w, c].

SAME padding gives ceil(n / stride) positions and puts the odd pixel behind; PyTorch pads alike on
both sides. Bilinear resizing has three rules for where an output pixel looks; ``legacy`` is
TensorFlow's first one, without half-pixel centres.

    y = convolution(x, weight, bias, stride=2, padding="same", groups=1)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Padding", "ResizeRule", "convolution", "max_pool", "pad_same", "resize_bilinear"]

Padding = Literal["same", "valid"]
ResizeRule = Literal["legacy", "half_pixel", "align_corners"]


def convolution(
    images: Float[Tensor, "b h w c"],
    weight: Float[Tensor, "o i kh kw"],
    bias: Tensor | None,
    *,
    stride: int,
    padding: Padding,
    groups: int,
) -> Float[Tensor, "b p q o"]:
    """A convolution with PyTorch's order of weights; ``groups`` equal to c makes it depthwise."""
    pixels = images.movedim(-1, 1)
    if padding == "same":
        pixels = pad_same(pixels, weight.shape[-2:], stride)
    return F.conv2d(pixels, weight, bias, stride, groups=groups).movedim(1, -1)


def max_pool(
    images: Float[Tensor, "b h w c"], *, size: int, stride: int, padding: Padding
) -> Float[Tensor, "b p q c"]:
    """The largest value of each window; what is padded never wins."""
    pixels = images.movedim(-1, 1)
    if padding == "same":
        pixels = pad_same(pixels, (size, size), stride, value=float("-inf"))
    return F.max_pool2d(pixels, size, stride).movedim(1, -1)


def pad_same(
    pixels: Float[Tensor, "b c h w"],
    kernel: tuple[int, int],
    stride: int,
    *,
    value: float = 0.0,
) -> Float[Tensor, "b c p q"]:
    """What SAME padding adds around ``pixels``."""
    sides = []
    for length, reach in zip(reversed(pixels.shape[-2:]), reversed(kernel), strict=True):
        total = max((-(-length // stride) - 1) * stride + reach - length, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(pixels, sides, value=value) if any(sides) else pixels


def resize_bilinear(
    images: Float[Tensor, "b h w c"], size: tuple[int, int], rule: ResizeRule
) -> Float[Tensor, "b p q c"]:
    """Bilinear interpolation without smoothing."""
    pixels = images.movedim(-1, 1)
    if rule != "legacy":
        resized = F.interpolate(
            pixels, size, mode="bilinear", align_corners=rule == "align_corners"
        )
        return resized.movedim(1, -1)
    for axis, count in zip((2, 3), size, strict=True):
        pixels = _resized_axis(pixels, axis, count)
    return pixels.movedim(1, -1)


def _resized_axis(pixels: Tensor, axis: int, count: int) -> Tensor:
    """Output pixel i looks at i * length / count."""
    length = pixels.shape[axis]
    places = torch.arange(count, device=pixels.device) * (length / count)
    below = places.floor().long()
    above = (below + 1).clamp(max=length - 1)
    share = (places - below).to(pixels).reshape([-1 if k == axis else 1 for k in range(4)])
    return torch.lerp(pixels.index_select(axis, below), pixels.index_select(axis, above), share)
