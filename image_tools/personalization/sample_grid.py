"""Pictures of what a training has learned so far: one row per prompt, one column per seed.

Each picture starts from the same noise at every step, so that grids of different steps differ by
what was learned and nothing else.

    hooks = LoopHooks(sample=grid_writer(prior, ["a <my-dog> on a beach"], folder / "samples"))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from image_tools.personalization.class_images import write_image
from image_tools.personalization.loop import batch_generator

__all__ = ["grid_writer", "sample_grid"]

SAMPLER = DdimConfig(steps=20)


def sample_grid(
    prior: DiffusionPrior,
    prompts: Sequence[str],
    *,
    columns: int = 4,
    seed: int = 0,
    sampler: DdimConfig = SAMPLER,
) -> Float[Tensor, "h w 3"]:
    """Samples side by side; all rows use the same noise."""
    rows = []
    for prompt in prompts:
        generators = [batch_generator(seed, column) for column in range(columns)]
        images = sample_images(prior, [prompt] * columns, generators=generators, config=sampler)
        rows.append(torch.cat(list(images), dim=1))
    return torch.cat(rows)


def grid_writer(
    prior: DiffusionPrior,
    prompts: Sequence[str],
    folder: Path,
    *,
    columns: int = 4,
    seed: int = 0,
    sampler: DdimConfig = SAMPLER,
) -> Callable[[int], None]:
    """A ``sample`` hook that writes ``step-000100.png`` into ``folder``."""

    def write(step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        grid = sample_grid(prior, prompts, columns=columns, seed=seed, sampler=sampler)
        write_image(folder / f"step-{step:06d}.png", grid)

    return write
