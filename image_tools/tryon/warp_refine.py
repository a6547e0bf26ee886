"""The U-Net that repaints a bent garment (LaDI-VTON, arXiv 2305.13501, section 3.2).

Four halvings and back, bilinear, with the finer features beside the coarser ones at each step up.
Tensors have the names of the authors' file.

    net = RefinementNet(RefinementSettings())
    refined = net(torch.cat([agnostic, pose, warped], dim=1))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.tryon.ladi_configs import RefinementSettings
from image_tools.tryon.own_modules import OwnModule

__all__ = ["RefinementNet"]


class RefinementNet(OwnModule):
    """Pictures in -1..1 (before they are clamped) from pictures and maps; sides divide by 16."""

    def __init__(self, settings: RefinementSettings) -> None:
        """An untrained network."""
        super().__init__(settings)
        w, bias = settings.width, settings.bias
        self.inc = _Twice(settings.in_channels, w, w, bias)
        self.down1, self.down2 = _Down(w, 2 * w, bias), _Down(2 * w, 4 * w, bias)
        self.down3, self.down4 = _Down(4 * w, 8 * w, bias), _Down(8 * w, 8 * w, bias)
        self.up1, self.up2 = _Up(16 * w, 4 * w, bias), _Up(8 * w, 2 * w, bias)
        self.up3, self.up4 = _Up(4 * w, w, bias), _Up(2 * w, w, bias)
        self.outc = _Out(w)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """The picture."""
        levels = [self.inc(maps)]
        for down in (self.down1, self.down2, self.down3, self.down4):
            levels.append(down(levels[-1]))
        features = levels.pop()
        for up in (self.up1, self.up2, self.up3, self.up4):
            features = up(features, levels.pop())
        return self.outc(features)


class _Twice(nn.Module):
    """Two convolutions with batch normalisation."""

    def __init__(self, channels: int, middle: int, out: int, bias: bool) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            *(nn.Conv2d(channels, middle, 3, padding=1, bias=bias), nn.BatchNorm2d(middle)),
            *(nn.ReLU(), nn.Conv2d(middle, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out)),
            nn.ReLU(),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.double_conv(features)


class _Down(nn.Module):
    """Half the size."""

    def __init__(self, channels: int, out: int, bias: bool) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _Twice(channels, out, out, bias))

    def forward(self, features: Tensor) -> Tensor:
        return self.maxpool_conv(features)


class _Up(nn.Module):
    """Twice the size, beside finer features."""

    def __init__(self, channels: int, out: int, bias: bool) -> None:
        super().__init__()
        self.conv = _Twice(channels, channels // 2, out, bias)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        size = fine.shape[-2:]
        coarse = F.interpolate(coarse, size, mode="bilinear", align_corners=True)
        return self.conv(torch.cat([fine, coarse], dim=1))


class _Out(nn.Module):
    """Features to colours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features)
