"""From MS-Diffusion's configuration to a prior with subjects.

prior = load_ms_diffusion_prior(config, prior, prompt="a dog and a cat", steps=30)
"""

from __future__ import annotations

import torch

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ms_diffusion import MSAdapter, MSDiffusionPrior
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig
from image_tools.personalization.ms_diffusion_subjects import SeenSubjects, see_subjects
from image_tools.personalization.ms_diffusion_weights import read_ms_adapter
from image_tools.personalization.photos import load_photo
from image_tools.pocket.paths import adapter_path
from image_tools.vision.clip_images import load_clip_images

__all__ = ["load_ms_diffusion", "load_ms_diffusion_prior"]


def load_ms_diffusion(
    config: MSDiffusionConfig, prior: DiffusionPrior, *, prompt: str | None = None
) -> tuple[MSAdapter, SeenSubjects]:
    """The adapter and the subjects that a config names.

    Args:
        config: weights and subjects.
        prior: what the adapter was trained for.
        prompt: of the pictures, which names all subjects; only a layout needs it.

    Raises:
        WeightsMissing: something is absent or damaged; UnsafeWeights: an unsafe pickle.
        UnsupportedModel: the adapter was made for another denoiser or image encoder.
        PhotosError: a picture cannot be read; WordsError: a phrase is not in the prompt.
    """
    path = adapter_path(config.weights, role="MS-Diffusion")
    adapter = read_ms_adapter(path, prior.unet, prior.dtype).to(prior.device)
    clip = load_clip_images(config.image_encoder, prior.device, prior.dtype)
    if clip.width != adapter.shape.image_width:
        raise UnsupportedModel(
            f"image_encoder makes tokens of {clip.width} numbers, '{path.name}' reads "
            f"{adapter.shape.image_width}. Expected the encoder that it was trained with: for the "
            "published adapter CLIP bigG, 1664 wide."
        )
    images = [
        torch.stack([load_photo(each, size=clip.side, config=config.photos) for each in one.images])
        for one in config.subjects
    ]
    images = [own.to(prior.device) for own in images]
    return adapter, see_subjects(prior, clip, config, images, prompt=prompt)


def load_ms_diffusion_prior(
    config: MSDiffusionConfig,
    prior: DiffusionPrior,
    *,
    prompt: str | None = None,
    steps: int | None = None,
) -> MSDiffusionPrior:
    """A prior with subjects in the places of a config.

    Args:
        config: as of ``load_ms_diffusion``.
        prior: what the adapter was trained for.
        prompt: of the pictures; a layout needs it.
        steps: of the sampler; None where none draws, as in 3D.

    Raises:
        UnsupportedModel: places shall be found where no sampler draws.
        StudioError: as ``load_ms_diffusion``.
    """
    if config.layout is not None and (steps is None or prompt is None):
        raise UnsupportedModel(
            "layout finds places while a sampler draws, and none does here. Expected a box for "
            "each subject, and no layout."
        )
    adapter, seen = load_ms_diffusion(config, prior, prompt=prompt)
    return MSDiffusionPrior(
        prior, adapter, seen.at(adapter), fade=config.fade, layout=config.layout, steps=steps
    )
