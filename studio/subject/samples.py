"""Pictures of what a subject's weights draw: one without a view in the prompt, and three with one.

A model that learned the photos' side too well draws that side whatever the prompt says. They are
drawn of each of the weights, and on the way to them where ``loop.sample_every`` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from guidance.configs import PlainPromptsConfig, ViewWordsConfig
from guidance.prompts import view_texts
from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from image_tools.personalization.loop import batch_generator
from image_tools.personalization.loop_configs import TuningConfig
from image_tools.personalization.sample_grid import grid_writer
from studio.configs import SceneConfig
from studio.subject.folder import SubjectFolder, write_images

__all__ = ["COLUMNS", "draw_samples", "grid_rows", "grids_of", "sample_rows"]

COLUMNS = ("no view", "front", "side", "back")
DRAW = 1 << 44  # number of the first generator
GRID_COLUMNS = 2


def draw_samples(
    scene: SceneConfig, prior: DiffusionPrior, folder: SubjectFolder, name: str
) -> None:
    """Write ``samples/<name>/``; the noise is the same for all weights."""
    texts = _texts(scene)
    images = sample_images(
        prior,
        texts,
        generators=[batch_generator(scene.seed, DRAW + k) for k in range(len(texts))],
        config=scene.subject.samples,
        negative_prompt=scene.negative_prompt,
    )
    write_images(folder.samples / name, torch.as_tensor(images))


def sample_rows(config: DdimConfig) -> int:
    """Rows that the samples of one model send through the denoiser."""
    return len(COLUMNS) * config.steps * (1 if config.guidance_scale == 1.0 else 2)


def grids_of(
    scene: SceneConfig, prior: DiffusionPrior, folder: SubjectFolder, training: str
) -> Callable[[int], None]:
    """A hook of a training that draws the same prompts with two noises each."""
    return grid_writer(
        prior,
        _texts(scene),
        folder.grids(training),
        columns=GRID_COLUMNS,
        seed=scene.seed,
        sampler=scene.subject.samples,
    )


def grid_rows(config: DdimConfig, loop: TuningConfig) -> int:
    """Rows that the grids of a training send through the denoiser."""
    every = loop.sample_every
    grids = 1 + -(-loop.steps // every) if every else 0  # the untrained model's and the last too
    return grids * GRID_COLUMNS * sample_rows(config)


def _texts(scene: SceneConfig) -> tuple[str, ...]:
    """Prompts of the subject, in the order of ``COLUMNS``."""
    caption, prompts = scene.subject.caption(), scene.view_prompts
    is_plain = isinstance(prompts, PlainPromptsConfig)
    words = ViewWordsConfig() if is_plain else prompts.words
    side, front, back = view_texts(words, caption)[:3]  # of the left half
    return caption, front, side, back
