"""The pocket autoencoder: 64x64x3 images to 16x16x4 latents (LDM, arXiv 2112.10752, Sec. 3.1).

A stock ``AutoencoderKL``, trained with an L1 + L2 + image-gradient reconstruction loss and a small
KL term. There is no adversarial or perceptual loss: toybox images are flat coloured, and the
gradient term keeps their edges sharp. Some images are recoloured
(:mod:`studio.training.recoloring`). After training the latents are whitened, so that
``scaling_factor`` is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.training.graphs import captured
from studio.training.image_cache import ImageCache
from studio.training.loop import LoopConfig, TrainingLoop, on_device
from studio.training.recoloring import RecolorConfig, recolor_some

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = [
    "VAEConfig",
    "build_vae",
    "image_batch",
    "psnr_of",
    "train_decoder",
    "train_vae",
    "whiten_latents",
]


DECODER_NOISE = 0.05


@dataclass(frozen=True)
class VAEConfig:
    """Size and loss of the autoencoder."""

    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each level; every level but the last halves the image."""
    batch_size: int = 16
    """Images a step."""
    kl_weight: float = 2e-5
    """Weight of the KL term (mean over pixels and channels)."""
    gradient_weight: float = 0.5
    """Weight of the L1 loss on image differences."""
    recolor: RecolorConfig = field(default_factory=RecolorConfig)
    """Which images are recoloured, and how."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3000, learning_rate=2e-3, ema_decay=0.995, weight_decay=0.0
        )
    )
    """Length and learning rate of encoder and decoder together."""
    decoder_loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4000, learning_rate=1e-3, ema_decay=0.998, weight_decay=0.0
        )
    )
    """Length and learning rate of the decoder alone, afterwards, on the final latents."""


def build_vae(config: VAEConfig) -> AutoencoderKL:
    """A stock AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    levels = len(config.widths)
    return AutoencoderKL(
        block_out_channels=config.widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
    )


def image_batch(cache: ImageCache, index: np.ndarray, device: torch.device) -> Tensor:
    """Images of the cache as ``[b, 3, h, w]`` in -1..1."""
    batch = on_device(torch.from_numpy(cache.images[np.sort(index)]), device)
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images[..., 1:, :] - images[..., :-1, :], images[..., 1:] - images[..., :-1]


def rebuild_loss(rebuilt: Tensor, images: Tensor, config: VAEConfig) -> Tensor:
    """L1 + 2 L2 + weighted L1 of image differences, of ``[b, 3, h, w]`` in -1..1."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_edges(rebuilt), _edges(images)))
    loss = F.l1_loss(rebuilt, images) + 2.0 * F.mse_loss(rebuilt, images)
    return loss + config.gradient_weight * edges


class VAELoss(nn.Module):
    """Reconstruction and KL loss of images."""

    def __init__(self, vae: AutoencoderKL, config: VAEConfig) -> None:
        """Of ``vae``, weighted as ``config`` says."""
        super().__init__()
        self.vae, self.config = vae, config

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Of ``images [b, 3, h, w]`` with latent ``noise``."""
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * noise
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1.0 - posterior.logvar).mean()
        rebuilt = self.vae.decode(latents).sample
        return rebuild_loss(rebuilt, images, self.config) + self.config.kl_weight * kl


@torch.no_grad()
def psnr_of(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean PSNR in dB over images ``[b, 3, h, w]`` in -1..1, from latent means, in 0..1 units."""
    rebuilt = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    error = ((rebuilt - images) / 2).square().mean((1, 2, 3)).clamp(min=1e-12)
    return float((-10 * torch.log10(error)).mean())


@torch.no_grad()
def whiten_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Make latents zero-mean, unit-variance and uncorrelated over ``images [n, 3, h, w]``.

    The encoder ends and the decoder starts with a 1x1 convolution, so the affine map
    ``z -> A (z - mu)``, A = U Lambda^-1/2 U^T of the latent covariance, folds into both without
    changing any reconstruction. Of all whitening maps this one moves latents least (Kessy et al.,
    arXiv 1512.00809), so that those of an autoencoder that was trained on stay near their old
    ones. Without it one channel carries most of the variance and the
    others, which hold the colours, drown early in the diffusion's noise. Sets ``scaling_factor``
    to 1.
    """
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])
    flat = means.permute(0, 2, 3, 1).reshape(-1, means.shape[1]).double()
    mu = flat.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((flat - mu).T))
    forward = vectors / values.sqrt() @ vectors.T
    backward = torch.linalg.inv(forward)
    channels = len(mu)
    quant, post = vae.quant_conv, vae.post_quant_conv
    weight, bias = quant.weight[:channels, :, 0, 0].double(), quant.bias[:channels].double()
    quant.weight[:channels] = (forward @ weight)[:, :, None, None].to(quant.weight)
    quant.bias[:channels] = (forward @ (bias - mu)).to(quant.bias)
    weight = post.weight[:, :, 0, 0].double()
    post.bias += (weight @ mu).to(post.bias)
    post.weight.copy_((weight @ backward)[:, :, None, None])
    vae.register_to_config(scaling_factor=1.0)


def train_vae(
    config: VAEConfig,
    cache: ImageCache,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    log: Callable[[str], None],
    start: AutoencoderKL | None = None,
) -> AutoencoderKL:
    """Train (or finish) the autoencoder; returns it with averaged weights, in eval mode.

    Args:
        config: size and training; the size is ``start``'s where that is given.
        cache: the images.
        folder: training folder; calling again continues there.
        seed: of initial weights and batches.
        device: where the network runs.
        log: receives progress lines.
        start: an autoencoder in single precision to go on from, trained in place.
    """
    torch.manual_seed(seed)
    vae = (start or build_vae(config)).to(device).requires_grad_(True).train()
    loop = TrainingLoop(vae, config.loop, folder)
    losses: list[nn.Module] = []

    def loss_at(step: int) -> Tensor:
        index = np.random.default_rng([seed, step]).integers(0, len(cache), config.batch_size)
        images = image_batch(cache, index, device)
        side = images.shape[-1] // 2 ** (len(config.widths) - 1)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn((len(images), 4, side, side), generator=generator).to(device)
        images = recolor_some(images, config.recolor, generator)
        if step % 2:
            images = images.flip(-1)
        if not losses:
            losses.append(captured(VAELoss(vae, config), (images, noise)))
        return losses[0](images, noise)

    loop.run(loss_at, log=log)
    loop.load_average()
    vae.eval().requires_grad_(False)
    spread = np.linspace(0, len(cache) - 1, min(1024, len(cache))).astype(np.int64)
    whiten_latents(vae, image_batch(cache, spread, device))
    return vae


def train_decoder(
    config: VAEConfig,
    vae: AutoencoderKL,
    cache: ImageCache,
    folder: Path,
    *,
    seed: int,
    log: Callable[[str], None],
) -> None:
    """Go on with the decoder alone, in place.

    The encoder and with it the latent space stay as they are, so this may run beside or after the
    denoiser's training.
    """
    decoder = torch.nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    decoder.requires_grad_(True).train()
    loop = TrainingLoop(decoder, config.decoder_loop, folder)

    def loss_at(step: int) -> Tensor:
        index = np.random.default_rng([seed, step]).integers(0, len(cache), config.batch_size)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        images = image_batch(cache, index, vae.device)
        images = recolor_some(images, config.recolor, generator)
        with torch.no_grad():
            z = vae.encode(images).latent_dist.mean
        # A little noise: sampled latents are never exactly on the encoder's manifold.
        z = z + DECODER_NOISE * torch.randn(z.shape, generator=generator).to(z)
        return rebuild_loss(vae.decoder(vae.post_quant_conv(z)), images, config)

    loop.run(loss_at, log=log)
    loop.load_average()
    decoder.eval().requires_grad_(False)
