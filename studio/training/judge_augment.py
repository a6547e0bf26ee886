"""What a judge must not be misled by: backgrounds, framing, blur, noise, blotches, floaters.

Imperfect 3D assets are blurred, noisy, over-saturated, fringed and surrounded by specks. The judge
never sees such assets in training, so renders are worn down in these ways instead. One image in
four stays clean. There is no mirroring: it would turn the front of a mug into its back.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

__all__ = ["augment", "backgrounds"]

CLEAN_SHARE = 0.25
WHITE_SHARE = 0.6
SPECKED_SHARE = 0.35


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _smooth(
    batch: int, channels: int, size: int, cells: int, generator: torch.Generator
) -> Float[Tensor, "b c size size"]:
    """Slowly varying noise of unit deviation at ``cells`` points along each side."""
    coarse = torch.randn((batch, channels, cells, cells), generator=generator)
    return F.interpolate(coarse, size, mode="bilinear", align_corners=True)


def backgrounds(
    batch: int, size: int, generator: torch.Generator
) -> Float[Tensor, "b 3 size size"]:
    """Backgrounds: mostly white; else light, dark or saturated, and some of those uneven."""
    kind = torch.rand((batch, 1, 1, 1), generator=generator)
    grey = _uniform(0.0, 1.0, (batch, 1, 1, 1), generator)
    tint = _uniform(-0.06, 0.06, (batch, 3, 1, 1), generator)
    saturated = torch.rand((batch, 3, 1, 1), generator=generator)
    plain = torch.where(kind > 0.5 + 0.5 * WHITE_SHARE, saturated, grey + tint)
    uneven = torch.rand((batch, 1, 1, 1), generator=generator) < 0.3
    plain = plain + uneven * 0.12 * _smooth(batch, 3, size, 3, generator)
    return torch.where(kind < WHITE_SHARE, torch.ones(()), plain).clamp(0, 1)


def _reframe(
    layers: Float[Tensor, "b 4 h w"], generator: torch.Generator
) -> Float[Tensor, "b 4 h w"]:
    """Another distance, position, roll and aspect."""
    batch = len(layers)
    angle = _uniform(-6, 6, (batch,), generator) * math.pi / 180
    zoom = 1 / _uniform(0.75, 1.15, (batch,), generator)
    stretch = _uniform(0.93, 1.07, (batch,), generator)
    shift = _uniform(-0.12, 0.12, (batch, 2), generator)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = (
        torch.stack([cos * stretch, -sin, shift[:, 0]], 1),
        torch.stack([sin * stretch, cos, shift[:, 1]], 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(layers.shape), align_corners=False)
    return F.grid_sample(layers, grid, mode="bilinear", align_corners=False)


def _recolor(
    layers: Float[Tensor, "b 4 h w"], generator: torch.Generator
) -> Float[Tensor, "b 4 h w"]:
    """Saturation, brightness, contrast, a slight tint and blotches of the surface."""
    batch, size = len(layers), layers.shape[-1]
    color, alpha = layers[:, :3], layers[:, 3:]
    grey = color.mean(1, keepdim=True)
    color = grey + _uniform(0.75, 1.5, (batch, 1, 1, 1), generator) * (color - grey)
    contrast = _uniform(0.8, 1.25, (batch, 1, 1, 1), generator)
    color = 0.5 * alpha + contrast * (color - 0.5 * alpha)
    gain = _uniform(0.85, 1.12, (batch, 1, 1, 1), generator)
    tint = _uniform(0.94, 1.06, (batch, 3, 1, 1), generator)
    strength = _uniform(0.0, 0.14, (batch, 1, 1, 1), generator)
    blotches = 1 + strength * _smooth(batch, 3, size, 12, generator)
    color = (color * gain * tint * blotches).clamp(min=0).minimum(alpha)
    return torch.cat([color, alpha], 1)


def _add_floaters(
    layers: Float[Tensor, "b 4 h w"], generator: torch.Generator, *, count: int = 4
) -> Float[Tensor, "b 4 h w"]:
    """Up to ``count`` small soft specks in each image, over or beside the object."""
    batch, size = len(layers), layers.shape[-1]
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    here = torch.randint(0, 2, (batch, count), generator=generator)
    centre = _uniform(-0.95, 0.95, (2, batch, count, 1), generator)
    radius = _uniform(0.015, 0.08, (2, batch, count, 1), generator)
    across, down = torch.exp(-((axis - centre) / radius).square())
    covers = _uniform(0.3, 1.0, (batch, count), generator) * here
    specks = torch.rand((batch, 4, count, 1, 1), generator=generator)
    specks[:, 3] = 1.0
    for k in range(count):
        cover = covers[:, k, None, None] * across[:, k, None, :] * down[:, k, :, None]
        layers = torch.lerp(layers, specks[:, :, k], cover[:, None])
    return layers


def _soften(
    layers: Float[Tensor, "b 4 h w"], generator: torch.Generator
) -> Float[Tensor, "b 4 h w"]:
    """Blur a quarter of the batch, resample another at low resolution; the batch is shuffled."""
    quarter, size = len(layers) // 4, layers.shape[-1]
    blurred, coarse, rest = layers[:quarter], layers[quarter : 2 * quarter], layers[2 * quarter :]
    sigma = float(_uniform(0.5, 1.6, (1,), generator))
    taps = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    kernel = (taps / taps.sum()).view(1, 1, 1, 9).repeat(4, 1, 1, 1)
    blurred = F.conv2d(blurred, kernel, padding=(0, 4), groups=4)
    blurred = F.conv2d(blurred, kernel.transpose(2, 3), padding=(4, 0), groups=4)
    small = int(torch.randint(22, 50, (1,), generator=generator))
    coarse = F.interpolate(coarse, small, mode="bilinear", antialias=True)
    coarse = F.interpolate(coarse, size, mode="bilinear")
    return torch.cat([blurred, coarse, rest])


def _add_noise(
    images: Float[Tensor, "b 3 h w"], generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Grain in a third of the images and uneven light in another; the batch is shuffled."""
    third, size = len(images) // 3, images.shape[-1]
    grainy, uneven, rest = images[:third], images[third : 2 * third], images[2 * third :]
    strength = _uniform(0.0, 0.07, (2, third, 1, 1, 1), generator)
    grainy = grainy + strength[0] * torch.randn(grainy.shape, generator=generator)
    uneven = uneven + strength[1] * _smooth(third, 3, size, 6, generator)
    return torch.cat([grainy, uneven, rest])


def _shuffled(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The batch in random order, and the order that undoes it."""
    order = torch.randperm(len(images), generator=generator)
    return images[order], order.argsort()


def augment(
    layers: UInt8[Tensor, "b 4 h w"], generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Worn images in 0..1 on random backgrounds; the order of the batch is kept.

    Args:
        layers: colour over white, and coverage, 0..255.
        generator: CPU generator of all randomness.
    """
    x, undo = _shuffled(layers.float() / 255.0, generator)
    alpha = x[:, 3:]
    x = torch.cat([(x[:, :3] - (1 - alpha)).clamp(min=0), alpha], 1)  # premultiplied
    clean, specked = int(len(x) * CLEAN_SHARE), int(len(x) * (1 - SPECKED_SHARE))
    worn = _recolor(_reframe(x[clean:], generator), generator)
    worn = _soften(worn, generator)
    x = torch.cat([x[:clean], worn])
    x = torch.cat([x[:specked], _add_floaters(x[specked:], generator)])
    images = x[:, :3] + (1 - x[:, 3:]) * backgrounds(len(x), x.shape[-1], generator)
    worn, back = _shuffled(images[clean:], generator)
    noisy = _add_noise(worn, generator)[back]
    return torch.cat([images[:clean], noisy])[undo].clamp(0, 1)
