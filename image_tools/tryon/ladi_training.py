"""Training of LaDI-VTON's diffusion side (arXiv 2305.13501, sections 3.3 and 3.4), in this order.

    skips     L1(D(E(x), skips(E(x without the garment))), x) + 0.5 perceptual distance
    adapter   eps-MSE of a frozen inpainting model that is told the garment in pseudo-words
    denoiser  eps-MSE of the 31-channel denoiser and the adapter together; words, bent garment and
              pose are dropped in 20 % of the samples, each for itself

Batch k depends on its number and the generator alone, so that a killed training goes on bit for
bit. What is written are folders: ``emasc``, ``adapter`` and ``unet``.

    train_skips(EmascPrior(prior, skips), batches, EmascTrainingConfig(), folder, identity="...")
    train_adapter(inpainter, clip, adapter, batches, AdapterTrainingConfig(), folder, identity="")
    bent = bending(bend, batches)
    train_ladi(denoiser, clip, adapter, bent, LadiTrainingConfig(), folder, identity="...")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.precision import full_precision
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult
from image_tools.personalization.loop import LoopHooks
from image_tools.tryon.emasc import EmascPrior, adding
from image_tools.tryon.extend import ExtraChannels, TryOnDenoiser, latent_mask
from image_tools.tryon.ladi_configs import (
    AdapterTrainingConfig,
    EmascTrainingConfig,
    LadiTrainingConfig,
)
from image_tools.tryon.ladi_vton import ladi_channels, pseudo_words
from image_tools.tryon.ladi_warp import MODEL
from image_tools.tryon.ladi_words import InversionAdapter, describe
from image_tools.tryon.perceptual import PictureDistance
from image_tools.tryon.samples import TryOnBatches, TryOnSample
from image_tools.tryon.training import draw_latents, draw_rows, train_modules, write_modules
from image_tools.vision.clip_images import ClipImages

__all__ = ["train_adapter", "train_ladi", "train_skips"]


def train_skips(
    prior: EmascPrior,
    batches: TryOnBatches,
    config: EmascTrainingConfig,
    folder: Path,
    *,
    identity: str,
    perceptual: PictureDistance | None = None,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train a VAE's skip connections; calling again with the same folder goes on.

    Args:
        prior: whose VAE is frozen and whose connections are trained in place.
        batches: people and masks.
        config: settings.
        folder: the training's own. The result is its folder ``emasc``.
        identity: what the batches are; a resumed training must say the same.
        perceptual: distance of pictures; left out of the loss where there is none.
        hooks: progress, samples, a stop request.
    """
    vae, skips = prior.plain.vae, prior.skips

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        sample = batches(number, generator).to(prior.plain.device)
        pixels = (sample.person.movedim(-1, 1) * 2.0 - 1.0).to(vae.dtype)
        with torch.no_grad(), full_precision(pixels.device):
            posterior = vae.encode(pixels).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        latents = posterior.mean + posterior.std * noise.to(posterior.mean)
        added = prior.added(sample.agnostic, sample.mask)
        with adding(vae, added), full_precision(pixels.device):
            decoded = vae.decode(latents).sample
        total = F.l1_loss(decoded, pixels)
        if perceptual is not None and config.perceptual:
            total = total + config.perceptual * perceptual(decoded, pixels)
        return total

    return train_modules(
        [skips],
        loss,
        config,
        folder,
        write=partial(write_modules, {"emasc": skips}),
        prior=prior.plain,
        identity=identity,
        hooks=hooks,
    )


def train_adapter(
    inpainter: TryOnDenoiser,
    clip: ClipImages,
    adapter: InversionAdapter,
    batches: TryOnBatches,
    config: AdapterTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train an inversion adapter beside a frozen inpainting model, as ``train_skips`` does.

    Args:
        inpainter: of 9 channels: sees mask and masked latents beside the noisy ones.
        clip: looks at the product pictures.
        adapter: float32, trained in place, frozen at the end.
        batches: people who wear their garments.
        config: settings.
        folder: the training's own. The result is its folder ``adapter``.
        identity: what the batches are.
        hooks: progress, samples, a stop request.
    """

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        sample = batches(number, generator).to(inpainter.device)
        with torch.no_grad():
            latents = draw_latents(inpainter, sample.person, generator)
            mask = latent_mask(sample.mask, inpainter.latent_stride)
            person = inpainter.encode_images(sample.agnostic)
        text = _spoken(inpainter, clip, adapter, sample, generator)
        shown = ExtraChannels(torch.cat([mask, person], dim=1))
        noisy = draw_noisy(inpainter, latents, generator)
        return denoising_errors(inpainter, noisy, Condition(text, additions=(shown,))).mean()

    with _dropping_out(adapter):
        return train_modules(
            [adapter],
            loss,
            config,
            folder,
            write=partial(write_modules, {"adapter": adapter}),
            prior=inpainter,
            identity=identity,
            recomputed=[inpainter.unet],
            hooks=hooks,
        )


def train_ladi(
    denoiser: TryOnDenoiser,
    clip: ClipImages,
    adapter: InversionAdapter,
    batches: TryOnBatches,
    config: LadiTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train denoiser and adapter; calling again with the same folder goes on.

    Args:
        denoiser: of 31 channels, float32, trained in place, frozen at the end.
        clip: looks at the product pictures.
        adapter: the same; for instance as ``train_adapter`` left it.
        batches: people who wear their garments, with keypoints and the bent garment (``bending``
            in ``ladi_warp`` makes it).
        config: settings.
        folder: the training's own. The results are its folders ``unet`` and ``adapter``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.
    """

    def loss(number: int, generator: torch.Generator) -> Float[Tensor, ""]:
        sample = batches(number, generator).to(denoiser.device)
        no_words, no_warp, no_pose = (
            draw_rows(len(sample), config.dropout, generator).to(denoiser.device) for _ in range(3)
        )
        with torch.no_grad():
            latents = draw_latents(denoiser, sample.person, generator)
            shown = ladi_channels(denoiser, sample, no_warp=no_warp, no_pose=no_pose)
            nothing = denoiser.encode_negative([""]).expand(len(sample))
        told = _spoken(denoiser, clip, adapter, sample, generator)
        text = told.lerp(nothing, no_words)
        noisy = draw_noisy(denoiser, latents, generator)
        return denoising_errors(denoiser, noisy, Condition(text, additions=(shown,))).mean()

    with _dropping_out(adapter):
        return train_modules(
            [denoiser.unet, adapter],
            loss,
            config,
            folder,
            write=partial(write_modules, {"unet": denoiser.unet, "adapter": adapter}),
            prior=denoiser,
            identity=identity,
            recomputed=[denoiser.unet],
            hooks=hooks,
        )


@contextmanager
def _dropping_out(adapter: InversionAdapter) -> Iterator[None]:
    """Inside, the adapter is in training mode."""
    adapter.train()
    try:
        yield
    finally:
        adapter.eval()


def _spoken(
    denoiser: TryOnDenoiser,
    clip: ClipImages,
    adapter: InversionAdapter,
    sample: TryOnSample,
    generator: torch.Generator,
) -> TextEmbedding:
    """Prompts with the garments' pseudo-words; gradients reach the adapter.

    Dropout draws from torch's default generator, which is seeded for it and then restored.
    """
    garment = sample.only_garment(model=MODEL).sized(sample.size)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    devices = [denoiser.device] if denoiser.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        words: Tensor = pseudo_words(clip, adapter, garment)
    return describe(denoiser.text, garment.categories, words).to(denoiser.device)
