"""What a task that makes pictures makes of one seed, and what all of them draw with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import sample_images
from studio.images.configs import ImageTaskConfig, TextImageConfig

__all__ = ["Draw", "Picture", "draw_plainly", "make_drawn", "noise_of"]


@dataclass(frozen=True)
class Picture:
    """One picture of a run."""

    name: str
    """What its file is called, without seed and ending."""
    caption: str
    """What stands over it in the sheet."""
    image: Float[Tensor, "h w 3"]
    """Colours in 0..1."""
    prompt: str | None = None
    """What it shows, where words say so: of edits by instruction none do."""
    is_compared: bool = True
    """Whether it may differ from the first picture; conditions and plans are something else."""


Draw = Callable[[int], list[Picture]]
"""From a seed to its pictures: always as many, with the same names; the first is what the others
are compared with."""


def noise_of(seed: int) -> torch.Generator:
    """Where a picture's noise comes from; on the CPU, so that every device draws the same."""
    return torch.Generator().manual_seed(seed)


def draw_plainly(
    prior: NoisePrior, config: ImageTaskConfig, seed: int, prompt: str | None = None
) -> Float[Tensor, "h w 3"]:
    """What a prior draws of the scene's prompt, or of another one."""
    images = sample_images(
        prior,
        [config.prompt if prompt is None else prompt],
        generators=[noise_of(seed)],
        config=config.sampler,
        negative_prompt=config.negative_prompt,
    )
    return images[0]


def make_drawn(prior: NoisePrior, config: TextImageConfig) -> Draw:
    """What draws the scene's prompts, all of a seed from the same noise."""

    def draw(seed: int) -> list[Picture]:
        return [
            Picture(f"picture{k}", prompt, draw_plainly(prior, config, seed, prompt), prompt)
            for k, prompt in enumerate(config.prompts, start=1)
        ]

    return draw
