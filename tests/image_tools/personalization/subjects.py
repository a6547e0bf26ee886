"""Small subjects for personalization tests: a few coloured images, and short trainings."""

from __future__ import annotations

import torch
from torch import Tensor

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import CaptionedImages
from image_tools.personalization.loop_configs import TuningConfig

__all__ = ["SHORT", "images_of", "load_tiny", "photos", "predict", "train_numbers"]

SHORT = TuningConfig(steps=4, learning_rate=1e-3, save_every=2, log_every=2)


def load_tiny(tiny_pipelines, kind: str = "sd1") -> DiffusionPrior:
    """A fresh prior, since trainings change it."""
    return load_folder(tiny_pipelines[kind], torch.device("cpu"))


def images_of(count: int, *, size: int = 16, seed: int = 0) -> Tensor:
    """Smooth random images."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear").movedim(1, -1)


def photos(count: int = 3, *, caption: str = "a photo of sks duck", seed: int = 0):
    """Photos of a subject with one caption."""
    return CaptionedImages(images_of(count, seed=seed), (caption,) * count)


@torch.no_grad()
def predict(prior, prompt: str = "a red duck") -> Tensor:
    """A prediction for a fixed input, with text encoded as it is now."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, prior.latent_channels, 8, 8, generator=generator)
    return prior.predict_noise(latents, torch.tensor([100, 700]), prior.encode_prompt([prompt]))


def train_numbers(parameters, seed: int = 2, std: float = 0.3) -> None:
    """Stand in for training: numbers everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
