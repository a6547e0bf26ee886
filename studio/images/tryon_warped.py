"""Try-on by models that bend the garment: LaDI-VTON and StableVITON.

dress = ladi_dresser(prior, config, sample)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.tryon.ladi_weights import read_ladi
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.stable_viton_weights import read_stable_viton
from studio.images.configs import TryOnConfig

__all__ = ["ladi_dresser", "stable_viton_dresser"]

Dress = Callable[[torch.Generator], Float[Tensor, "1 h w 3"]]


def ladi_dresser(prior: DiffusionPrior, config: TryOnConfig, sample: TryOnSample) -> Dress:
    """One garment in pseudo-words and bent by a spline."""
    model = read_ladi(config.method, prior, image_hw=config.size, dtype=prior.dtype)

    def dress(generator: torch.Generator) -> Float[Tensor, "1 h w 3"]:
        return model.dress(sample, generators=[generator], config=config.sampler)

    return dress


def stable_viton_dresser(prior: DiffusionPrior, config: TryOnConfig, sample: TryOnSample) -> Dress:
    """One garment by cross-attention to its features."""
    model = read_stable_viton(config.method, prior, image_hw=config.size, dtype=prior.dtype)

    def dress(generator: torch.Generator) -> Float[Tensor, "1 h w 3"]:
        start = config.method.start
        return model.dress(sample, generators=[generator], config=config.sampler, start=start)

    return dress
