"""Which noise level each view gets: drawn between bounds that may move, or predetermined.

Bounds are fractions of the training length T, so 0.02..0.98 of 1000 steps is 20..980, both ends
included. A run that resumes at the same fraction with the same generator state continues exactly.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from guidance.configs import AnnealedTimestepsConfig, TimestepsConfig, UniformTimestepsConfig
from guidance.schedules import value_at

__all__ = ["annealed_timestep", "choose_timesteps", "timestep_bounds"]


def choose_timesteps(
    config: TimestepsConfig,
    n_views: int,
    *,
    num_train_timesteps: int,
    fraction: float,
    generator: torch.Generator,
) -> Int[Tensor, " views"]:
    """One timestep index per view, on the generator's device.

    Args:
        config: how they are chosen.
        n_views: number of views in the batch.
        num_train_timesteps: T of the prior.
        fraction: where in the stage we are, 0..1.
        generator: source of the draws; a predetermined schedule draws nothing.
    """
    if isinstance(config, AnnealedTimestepsConfig):
        t = annealed_timestep(config, num_train_timesteps, fraction)
        return torch.full((n_views,), t, device=generator.device)
    low, high = timestep_bounds(config, num_train_timesteps, fraction)
    n_draws = n_views if config.share == "view" else 1
    draws = torch.randint(low, high + 1, (n_draws,), generator=generator, device=generator.device)
    return draws.expand(n_views)


def timestep_bounds(
    config: UniformTimestepsConfig, num_train_timesteps: int, fraction: float
) -> tuple[int, int]:
    """Smallest and largest timestep index at ``fraction`` of the stage."""
    low, high = (value_at(bound, fraction) for bound in (config.min_t, config.max_t))
    return _index(low, num_train_timesteps), _index(high, num_train_timesteps)


def annealed_timestep(
    config: AnnealedTimestepsConfig, num_train_timesteps: int, fraction: float
) -> int:
    """Timestep index at ``fraction`` of the stage; it never rises."""
    progress = min(max(fraction, 0.0), 1.0) ** config.power
    share = config.start_t - (config.start_t - config.end_t) * progress
    return _index(share, num_train_timesteps)


def _index(share: float, num_train_timesteps: int) -> int:
    return min(max(round(share * num_train_timesteps), 0), num_train_timesteps - 1)
