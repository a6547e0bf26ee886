"""A tiny MS-Diffusion adapter for a tiny prior, and subjects for it."""

from __future__ import annotations

from pathlib import Path

import torch

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.ms_diffusion import MSAdapter
from image_tools.personalization.ms_diffusion_attention import SubjectRows
from image_tools.personalization.ms_diffusion_configs import (
    AutoLayoutConfig,
    MSDiffusionConfig,
    MSSubjectConfig,
)
from image_tools.personalization.ms_diffusion_subjects import see_subjects
from image_tools.personalization.ms_diffusion_training import new_ms_adapter
from image_tools.personalization.ms_diffusion_weights import write_ms_adapter
from image_tools.vision.clip_images import ClipImages
from tests.image_tools.personalization.subjects import images_of
from tests.image_tools.vision.tiny_clip import tiny_clip, write_tiny_clip

__all__ = ["PROMPT", "rows_of_subjects", "tiny_adapter", "two_subjects", "write_tiny_adapter"]

PROMPT = "a red duck and a mushroom"


def tiny_adapter(prior: DiffusionPrior, *, seed: int = 3) -> tuple[ClipImages, MSAdapter]:
    """An image encoder and an adapter whose projections for images are not those for text."""
    clip, generator = ClipImages(tiny_clip()), torch.Generator().manual_seed(seed)
    adapter = new_ms_adapter(prior, clip, generator=generator, dim=64, depth=1, tokens=3, dummies=2)
    with torch.no_grad():
        for parameter in adapter.ms_adapter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return clip, adapter.eval().requires_grad_(False)


def write_tiny_adapter(folder: Path, prior: DiffusionPrior) -> dict[str, str]:
    """The same two in files, as a config names them."""
    encoder, weights = write_tiny_clip(folder / "clip"), folder / "ms_adapter.bin"
    write_ms_adapter(weights, tiny_adapter(prior)[1])
    return {"weights": str(weights), "image_encoder": str(encoder)}


def two_subjects(
    *, scale: float = 0.6, layout: AutoLayoutConfig | None = None, **settings
) -> MSDiffusionConfig:
    """A duck on the left and a mushroom on the right."""
    boxes = ((0.0, 0.25, 0.5, 1.0), (0.5, 0.0, 1.0, 0.75))
    named = zip(("duck", "mushroom"), boxes, strict=True)
    return MSDiffusionConfig(
        weights="",
        image_encoder="",
        subjects=tuple(MSSubjectConfig(("x.png",), name, box) for name, box in named),
        scale=scale,
        layout=layout,
        **settings,
    )


def rows_of_subjects(
    prior: DiffusionPrior, clip: ClipImages, adapter: MSAdapter, config: MSDiffusionConfig
) -> SubjectRows:
    """Subjects that look like smooth noise."""
    images = images_of(len(config.subjects), seed=4).split(1)
    return see_subjects(prior, clip, config, images, prompt=PROMPT).at(adapter)
