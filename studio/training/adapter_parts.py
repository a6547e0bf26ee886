"""What adapters' recipes share: cached views as latents and text, noise, the written folder.

An adapter is trained beside a finished prior, which stays as it is. Data are toybox views with
exact buffers (:mod:`studio.training.buffer_views`); the prior's own autoencoder and text encoder
read them once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.denoising import NoisyBatch
from studio.evaluation.controls import ControlReport
from studio.evaluation.edits import EditReport
from studio.training.buffer_views import BufferViewCache, BufferViewConfig, render_buffer_views
from studio.training.denoiser import (
    LatentCache,
    cache_latents,
    cache_text,
    stratified_timesteps,
)
from studio.training.loop import on_device
from studio.training.start import frozen_parts, vae_digest

__all__ = [
    "EncodedViews",
    "draw_velocity",
    "encode_views",
    "step_generator",
    "write_card",
    "write_figures",
]


@dataclass(frozen=True)
class EncodedViews:
    """Views and what the prior makes of them."""

    views: BufferViewCache
    cache: LatentCache
    """Latents of the images and text states of the captions."""

    def batch(
        self, rows: np.ndarray, is_empty: np.ndarray
    ) -> tuple[Float[Tensor, "b c s s"], TextEmbedding]:
        """Latents and captions of some views, empty ones where ``is_empty`` [b] is true."""
        said = np.where(is_empty, 0, self.cache.text_index[rows])
        latents, states = self.cache.read(rows, said)
        return latents, TextEmbedding(states)


def encode_views(
    folder: Path,
    config: BufferViewConfig,
    start: Path,
    *,
    device: torch.device,
    log: Callable[[str], None],
) -> EncodedViews:
    """Render views into ``folder`` and encode them; what is there already is not made again.

    Args:
        folder: may be shared by the trainings of several adapters of one prior.
        config: the views.
        start: folder of the prior.
        device: where the prior's networks run.
        log: receives progress lines.

    Raises:
        ConfigError: ``folder`` holds views of other settings.
    """
    views = render_buffer_views(folder / "views", config, log=log)
    vae, encoder, tokenizer = frozen_parts(start, device)
    latents = folder / "latents"
    cache_latents(latents, views, vae, key=f"views/{vae_digest(start)}", log=log)
    cache_text(latents, views, encoder, tokenizer, log=log)
    cache = LatentCache(latents)
    cache.reside(device)
    return EncodedViews(views, cache)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of a training step, which depends on seed and step alone."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def draw_velocity(
    prior: DiffusionPrior,
    latents: Float[Tensor, "b c s s"],
    generator: torch.Generator,
    *,
    tilt: float,
) -> NoisyBatch:
    """Noisy latents with one timestep from each part of the schedule, and their v.

    Args:
        prior: a v-prediction prior.
        latents: clean ones, on any device.
        generator: source of timesteps and noise.
        tilt: see :func:`studio.training.denoiser.stratified_timesteps`.
    """
    noise = on_device(torch.randn(latents.shape, generator=generator), prior.device)
    t = stratified_timesteps(len(latents), prior.num_train_timesteps, generator, tilt=tilt)
    t, latents = on_device(t, prior.device), on_device(latents, prior.device)
    alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
    return NoisyBatch(add_noise(latents, noise, alpha, sigma), t, alpha * noise - sigma * latents)


def write_figures(out: Path, report: ControlReport | EditReport) -> dict[str, float]:
    """``evaluation.json`` beside the weights; returns the figures without their intervals."""
    (out / "evaluation.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    return {name: figure.value for name, figure in report.figures.items()}


def write_card(out: Path, card: dict) -> None:
    """``training.json`` beside the weights, whose settings lose paths of the training machine."""
    for path in [out / "config.json", *out.glob("*/config.json")]:
        if path.is_file():
            settings = json.loads(path.read_text())
            settings.pop("_name_or_path", None)
            path.write_text(json.dumps(settings, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(card, indent=2) + "\n")
