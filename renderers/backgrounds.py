"""What stands behind the object: a colour, a random colour, or a learned environment map.

Random backgrounds stop a field from painting its own backdrop. For multi-view guidance all views of
a batch must show the same one (``share: batch``; MVDream, arXiv 2308.16512, section 3.3). The
environment map follows DreamFusion (arXiv 2209.14988, section 3.1): a small network of the viewing
direction, here of its spherical harmonics up to degree 2 (nine numbers, "degree 3" in tinycudann).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from renderers.configs import (
    BackgroundConfig,
    NeuralBackgroundConfig,
    RandomBackgroundConfig,
    SolidBackgroundConfig,
)
from renderers.fields.mlp import ReluMLP

__all__ = [
    "Background",
    "NeuralBackground",
    "RandomBackground",
    "SolidBackground",
    "build_background",
    "spherical_harmonics",
]

N_HARMONICS = 9


class Background(nn.Module):
    """Colours behind the object, from viewing directions."""

    def forward(
        self, rays_d: Float[Tensor, "b h w 3"], generator: torch.Generator | None
    ) -> Float[Tensor, "b h w 3"]:
        """Background of ``b`` images; without a generator the evaluation background."""
        raise NotImplementedError


class SolidBackground(Background):
    """One colour."""

    def __init__(self, config: SolidBackgroundConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, rays_d: Float[Tensor, "b h w 3"], generator: torch.Generator | None
    ) -> Float[Tensor, "b h w 3"]:
        """The colour, for every pixel."""
        return rays_d.new_tensor(self.config.color).expand_as(rays_d)


class RandomBackground(Background):
    """A random colour in training, a solid one otherwise."""

    def __init__(self, config: RandomBackgroundConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, rays_d: Float[Tensor, "b h w 3"], generator: torch.Generator | None
    ) -> Float[Tensor, "b h w 3"]:
        """A colour for each image, or for the batch; solid without a generator."""
        solid = rays_d.new_tensor(self.config.color).expand_as(rays_d)
        if generator is None:
            return solid
        return _replace(solid, self.config.probability, self.config.share, generator)


class NeuralBackground(Background):
    """Learned environment map, in training at times replaced by a random colour."""

    def __init__(self, config: NeuralBackgroundConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        hidden = (config.hidden_width,) * config.hidden_layers
        self.network = ReluMLP((N_HARMONICS, *hidden, 3), generator=generator)

    def forward(
        self, rays_d: Float[Tensor, "b h w 3"], generator: torch.Generator | None
    ) -> Float[Tensor, "b h w 3"]:
        """The map; with a generator some images get a random colour instead."""
        harmonics = spherical_harmonics(rays_d.reshape(-1, 3))
        color = torch.sigmoid(self.network(harmonics)).view_as(rays_d)
        if generator is None:
            return color
        return _replace(color, self.config.random_probability, self.config.share, generator)


def build_background(config: BackgroundConfig, generator: torch.Generator) -> Background:
    """The background for a config; ``generator`` draws its initial weights."""
    if isinstance(config, SolidBackgroundConfig):
        return SolidBackground(config)
    if isinstance(config, RandomBackgroundConfig):
        return RandomBackground(config)
    return NeuralBackground(config, generator)


def spherical_harmonics(directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 9"]:
    """Real spherical harmonics of degree 0 to 2, orthonormal on the unit sphere."""
    x, y, z = directions.unbind(-1)
    return torch.stack(
        [
            torch.full_like(x, 0.28209479177387814),
            0.4886025119029199 * y,
            0.4886025119029199 * z,
            0.4886025119029199 * x,
            1.0925484305920792 * x * y,
            1.0925484305920792 * y * z,
            0.9461746957575601 * z * z - 0.31539156525252,
            1.0925484305920792 * x * z,
            0.5462742152960396 * (x * x - y * y),
        ],
        dim=-1,
    )


def _replace(
    color: Tensor, probability: float, share: Literal["image", "batch"], generator: torch.Generator
) -> Tensor:
    """Give images, or all of a batch, a random colour with the given probability."""
    draws = len(color) if share == "image" else 1
    numbers = torch.rand(draws, 4, generator=generator, device=generator.device).to(color)
    chosen: Bool[Tensor, "d 1 1 1"] = (numbers[:, 0] < probability)[:, None, None, None]
    return torch.where(chosen, numbers[:, None, None, 1:], color)
