"""More colours and objects for a finished autoencoder, with its latents left where they are.

The pocket autoencoder was trained on ten colours of toys, and sees no others: it reads magenta as
grey, and the greys of real objects as magenta. A new one would be a new latent space, in which
every denoiser has to be trained again. So encoder and decoder go on together on a mix of toys,
real objects and recoloured images of both, while the latents of the toys are held at those of the
encoder before:

    loss = rebuild(mix) + kl + keep_weight * mean |E(toys) - E_before(toys)|^2

A denoiser of toys then works as before, and what it never saw lies where nothing else lies.

    widen_pocket(PRESETS["cpu"], work, start=pocket, out=wider, device=cpu, log=print)
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from studio.training.image_cache import ImageCache
from studio.training.loop import LoopConfig, TrainingLoop
from studio.training.pocket import PocketConfig, cache_images, vae_figures, write_pocket
from studio.training.start import begin_unet, frozen_parts, vae_digest
from studio.training.vae import VAEConfig, image_batch, psnr_of, rebuild_loss

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["WideningConfig", "recolor", "widen_pocket", "widen_vae"]


UNSEEN = ("vae_psnr_db", "vae_objects_psnr_db")


@dataclass(frozen=True)
class WideningConfig:
    """How an autoencoder is trained on; the reconstruction loss is that of the first training."""

    toys: int = 8
    """Images of the toybox in a batch, whose latents are kept."""
    objects: int = 4
    """Images of real objects in a batch."""
    recolored: int = 6
    """Recoloured images in a batch, of toys and objects."""
    keep_weight: float = 4.0
    """Weight of the squared distance of the toys' latents from what they were."""
    saturation: tuple[float, float] = (0.0, 1.6)
    """Range of the factor of a recoloured image's colourfulness."""
    brightness: tuple[float, float] = (0.5, 1.1)
    """Range of the factor of its brightness."""
    loss: VAEConfig = field(default_factory=VAEConfig)
    """Weights of the reconstruction and KL losses."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3000, learning_rate=1e-3, ema_decay=0.998, weight_decay=0.0
        )
    )
    """Length and learning rate."""


def recolor(
    images: Float[Tensor, "b 3 h w"], config: WideningConfig, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Images in -1..1 with their hues turned by any angle, more or less colourful and bright.

    Colours turn around the axis of greys, in RGB (Rodrigues' formula), so greys stay grey.
    """
    draws = torch.rand(len(images), 3, generator=generator).to(images)
    angle = 2.0 * math.pi * draws[:, 0]
    axis = torch.full((3,), 3.0**-0.5).to(images)
    x, y, z = axis.tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]).to(images)
    grey = torch.outer(axis, axis)
    turned = (
        torch.cos(angle)[:, None, None] * (torch.eye(3).to(images) - grey)
        + torch.sin(angle)[:, None, None] * cross
    )
    low, high = config.saturation
    dim, bright = config.brightness
    matrix = grey + (low + (high - low) * draws[:, 1])[:, None, None] * turned
    matrix = matrix * (dim + (bright - dim) * draws[:, 2])[:, None, None]
    colors = torch.einsum("bij,bjhw->bihw", matrix, images * 0.5 + 0.5)
    return colors.clamp(0.0, 1.0) * 2.0 - 1.0


def widen_vae(
    config: WideningConfig,
    vae: AutoencoderKL,
    toys: ImageCache,
    objects: ImageCache,
    folder: Path,
    *,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Train (or finish training) ``vae`` on, in place; it ends with averaged weights, frozen.

    Args:
        config: the mix and the weights.
        vae: a finished autoencoder.
        toys: images whose latents stay.
        objects: images that it shall learn.
        folder: of the checkpoints.
        seed: of the batches.
        log: receives progress lines.
    """
    before = copy.deepcopy(vae).eval().requires_grad_(False)
    vae.requires_grad_(True).train()
    loop = TrainingLoop(vae, config.loop, folder)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        known = image_batch(toys, rng.integers(0, len(toys), config.toys), vae.device)
        new = image_batch(objects, rng.integers(0, len(objects), config.objects), vae.device)
        both = torch.cat([known, new])
        chosen = torch.from_numpy(rng.permutation(len(both))[: config.recolored])
        mix = torch.cat([both, recolor(both[chosen], config, generator)])
        return _loss(config, vae, before, mix, generator)

    loop.run(loss_at, log=log)
    loop.load_average()
    vae.eval().requires_grad_(False)


def _loss(
    config: WideningConfig,
    vae: AutoencoderKL,
    before: AutoencoderKL,
    mix: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The loss of a batch, toys first."""
    posterior = vae.encode(mix).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(mix)
    latents = posterior.mean + posterior.std * noise
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
    with torch.no_grad():
        kept = before.encode(mix[: config.toys]).latent_dist.mean
    moved = (posterior.mean[: config.toys] - kept).square().mean()
    rebuilt = rebuild_loss(vae.decode(latents).sample, mix, config.loss)
    return rebuilt + config.loss.kl_weight * kl + config.keep_weight * moved


def widen_pocket(
    config: PocketConfig,
    work: Path,
    *,
    start: Path,
    out: Path,
    device: torch.device,
    log: Callable[[str], None],
    widening: WideningConfig | None = None,
) -> dict[str, float]:
    """Widen the autoencoder of a finished model; its denoiser and text encoder stay.

    Args:
        config: names the images, of toys and of objects.
        work: training folder; calling again continues there.
        start: the model to go on from, in stock diffusers layout.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.
        widening: how it is trained; the defaults when not given.

    Returns:
        PSNR in dB on images that no training saw, and how far the latents of toys moved.

    Raises:
        ValueError: the training in ``work`` began from another model or saw other images, or there
            is no image of an object.
    """
    if not config.object_images:
        raise ValueError("objects_share is 0 - expected more: a wider autoencoder sees objects.")
    widening = widening or WideningConfig()
    unet = begin_unet(start, work)
    cache_images(replace(config, pair_images=0), work, log=log)
    vae, encoder, tokenizer = frozen_parts(start, device)
    before = copy.deepcopy(vae)
    toys, objects = ImageCache(work / "images"), ImageCache(work / "objects")
    folder = work / "vae_wider"
    widen_vae(widening, vae, toys, objects, folder, seed=config.seed, log=log)
    figures = {**vae_figures(config, vae, work), **_widening_figures(widening, vae, before, work)}
    path = start / "training.json"
    card = json.loads(path.read_text()) if path.is_file() else {}
    card["widening"] = {
        "start": vae_digest(start),
        "config": asdict(widening),
        "seed": config.seed,
        "facts": figures,
    }
    write_pocket(vae, encoder, tokenizer, unet, out, card=card)
    return figures


@torch.no_grad()
def _widening_figures(
    config: WideningConfig, vae: AutoencoderKL, before: AutoencoderKL, work: Path
) -> dict[str, float]:
    """PSNR on recoloured unseen images, and the root mean square of how far toys' latents moved."""
    caches = [ImageCache(work / "unseen" / name) for name in UNSEEN]
    toys, objects = (image_batch(c, np.arange(min(128, len(c))), vae.device) for c in caches)
    both = torch.cat([toys, objects])
    colors = recolor(both, config, torch.Generator().manual_seed(0))
    moved = vae.encode(toys).latent_dist.mean - before.encode(toys).latent_dist.mean
    return {
        "vae_recolored_psnr_db": round(psnr_of(vae, colors), 2),
        "vae_latents_moved": round(float(moved.square().mean().sqrt()), 4),
    }
