"""Pictures of what a subject's weights draw: one without a view in the prompt, and three with one.

A model that learned the photos' side too well draws that side whatever the prompt says.
"""

from __future__ import annotations

import torch

from guidance.configs import PlainPromptsConfig, ViewWordsConfig
from guidance.prompts import view_texts
from image_tools.configs import DdimConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import sample_images
from image_tools.personalization.loop import batch_generator
from studio.configs import SceneConfig
from studio.subject.folder import SubjectFolder, write_images

__all__ = ["COLUMNS", "draw_samples", "sample_rows"]

COLUMNS = ("no view", "front", "side", "back")
DRAW = 1 << 44  # number of the first generator


def draw_samples(
    scene: SceneConfig, prior: DiffusionPrior, folder: SubjectFolder, name: str
) -> None:
    """Write ``samples/<name>/``; the noise is the same for all weights."""
    caption, prompts = scene.subject.caption(), scene.view_prompts
    is_plain = isinstance(prompts, PlainPromptsConfig)
    words = ViewWordsConfig() if is_plain else prompts.words
    side, front, back = view_texts(words, caption)[:3]  # of the left half
    texts = (caption, front, side, back)
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
