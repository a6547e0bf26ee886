"""The pocket denoiser: a stock text-conditioned UNet trained on toybox latents.

v-prediction (arXiv 2202.00512) on Stable Diffusion's noise schedule, all timesteps weighted alike,
10 % caption dropout for classifier-free guidance (arXiv 2207.12598). Latents and text states are
computed once and cached; the network reads them preconditioned while it trains
(:mod:`studio.training.conditioning`).

Min-SNR weighting (arXiv 2303.09556) is left out on purpose: for v it is min(SNR, 5) / (SNR + 1),
0.04 at t = 800, and the noisiest steps are the ones that decide from which side an object is seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from studio.training.conditioning import TextPreconditioner
from studio.training.contrast import ContrastConfig, WrongWords, contrast_loss
from studio.training.graphs import Denoiser, captured
from studio.training.image_cache import ImageCache
from studio.training.loop import LoopConfig, TrainingLoop, on_device
from studio.training.text import MAX_TOKENS, encode_captions
from studio.training.vae import image_batch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DenoiserConfig",
    "LatentCache",
    "build_scheduler",
    "build_unet",
    "cache_latents",
    "cache_text",
    "stratified_timesteps",
    "train_denoiser",
]

TEXT_WIDTH = 384
ENCODED_AT_ONCE = 256


@dataclass(frozen=True)
class DenoiserConfig:
    """Size of the UNet and its training."""

    widths: tuple[int, ...] = (64, 128, 128)
    """Channels at 16x16, 8x8 and 4x4."""
    heads: int = 4
    """Attention heads of each layer."""
    batch_size: int = 16
    """Latents a step."""
    caption_dropout: float = 0.1
    """Share of empty captions."""
    noise_tilt: float = 1.0
    """Timesteps have density p (t/T)^(p-1): 1 is uniform, more draws noisy ones more often."""
    text_ridge: float = 1e-2
    """Ridge of the text preconditioner, as a share of the states' mean variance."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    """Comparison with wrong captions."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(steps=12_500, learning_rate=6e-4))
    """Length and learning rate (12 500 steps of 16 are 200 000 samples)."""


def build_unet(config: DenoiserConfig) -> UNet2DConditionModel:
    """A stock UNet with cross-attention at 16x16 and 8x8, random weights."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=config.widths,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=config.heads,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with v-prediction."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class LatentCache:
    """Scaled latents, and text states by caption, on disk and memory mapped.

    Attributes:
        latents: ``[n, 4, 16, 16]`` float16.
        text: ``[m, 24, 384]`` float16 of the distinct captions; row 0 is the empty caption.
        text_index: ``[n]`` row of ``text`` for each latent.
    """

    _resident: tuple[Tensor, Tensor] | None = None

    def __init__(self, folder: Path) -> None:
        """Open a cache written by :func:`cache_text` and :func:`cache_latents`."""
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        self.text = np.load(folder / "text.npy", mmap_mode="r")
        self.text_index = np.load(folder / "text_index.npy")

    def batch(
        self, rng: np.random.Generator, size: int, caption_dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Random latents ``[b, 4, 16, 16]`` and text states ``[b, 24, 384]``, float32."""
        index = np.sort(rng.integers(0, len(self.latents), size))
        rows = np.where(rng.random(size) < caption_dropout, 0, self.text_index[index])
        return self.read(index, rows)

    def at(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """The latents of these rows and the states of their captions, likewise."""
        return self.read(index, self.text_index[index])

    def read(self, index: np.ndarray, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Latents ``index`` and text states ``rows``, likewise."""
        if self._resident is not None:
            latents, text = self._resident
            picked = [on_device(torch.from_numpy(k), text.device) for k in (index, rows)]
            return latents[picked[0]].float(), text[picked[1]].float()
        states = np.stack([self.text[row] for row in rows])
        return torch.from_numpy(self.latents[index]).float(), torch.from_numpy(states).float()

    def reside(self, device: torch.device) -> None:
        """Hold all on an accelerator, whence batches come then; on the CPU the disk serves."""
        if device.type != "cpu":
            arrays = (self.latents[:], self.text[:])
            self._resident = tuple(torch.from_numpy(np.array(a)).to(device) for a in arrays)


def _is_fresh(stamp: Path, key: str) -> bool:
    return stamp.exists() and json.loads(stamp.read_text()) == key


@torch.no_grad()
def cache_text(
    folder: Path,
    images: ImageCache,
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    log: Callable[[str], None],
) -> None:
    """Encode the distinct captions once, unless ``folder`` already holds exactly these."""
    distinct = ["", *sorted(set(images.captions))]
    key = hashlib.sha256(json.dumps([distinct, images.captions]).encode()).hexdigest()
    if _is_fresh(folder / "text_key.json", key):
        return
    folder.mkdir(parents=True, exist_ok=True)
    row = {caption: k for k, caption in enumerate(distinct)}
    text = np.empty((len(distinct), MAX_TOKENS, TEXT_WIDTH), dtype=np.float16)
    for start in range(0, len(distinct), 1024):
        part = encode_captions(text_encoder, tokenizer, distinct[start : start + 1024])
        text[start : start + 1024] = part.half().cpu().numpy()
        log(f"captions {start}/{len(distinct)}")
    np.save(folder / "text.npy", text)
    np.save(folder / "text_index.npy", np.array([row[c] for c in images.captions]))
    (folder / "text_key.json").write_text(json.dumps(key))


@torch.no_grad()
def cache_latents(
    folder: Path, images: ImageCache, vae: AutoencoderKL, *, key: str, log: Callable[[str], None]
) -> None:
    """Encode all images, unless ``folder`` already holds the latents of this ``key``."""
    key = hashlib.sha256(f"{key}/{len(images)}".encode()).hexdigest()
    if _is_fresh(folder / "latents_key.json", key):
        return
    folder.mkdir(parents=True, exist_ok=True)
    latents = np.empty((len(images), 4, 16, 16), dtype=np.float16)
    for start in range(0, len(images), ENCODED_AT_ONCE):
        index = np.arange(start, min(start + ENCODED_AT_ONCE, len(images)))
        mean = vae.encode(image_batch(images, index, vae.device)).latent_dist.mean
        latents[index] = (mean * vae.config.scaling_factor).half().cpu().numpy()
        if start % 6400 == 0:
            log(f"latents {start}/{len(images)}")
    np.save(folder / "latents.npy", latents)
    (folder / "latents_key.json").write_text(json.dumps(key))


def stratified_timesteps(
    count: int, total: int, generator: torch.Generator, *, tilt: float = 1.0
) -> Tensor:
    """``count`` timesteps of 0 .. total - 1, one in each equally likely part, in random order.

    Each has the density p (t/T)^(p-1) with p = ``tilt``. The loss depends on the timestep most of
    all, so that small batches are far less noisy than with independent draws.
    """
    part = torch.randperm(count, generator=generator)
    share = (part + torch.rand(count, generator=generator)) / count
    return (share ** (1.0 / tilt) * total).long().clamp(max=total - 1)


class _Objective:
    """The loss of a step: noise at random timesteps, and right view words against wrong ones."""

    def __init__(
        self,
        config: DenoiserConfig,
        cache: LatentCache,
        wrong: WrongWords | None,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.cache, self.wrong = config, cache, wrong
        self.seed, self.device = seed, device
        self.alphas_cumprod = build_scheduler().alphas_cumprod.to(device)
        self.preconditioner = TextPreconditioner.of_states(cache.text, config.text_ridge)
        self._denoise: nn.Module | None = None
        cache.reside(device)

    def __call__(self, unet: UNet2DConditionModel, step: int) -> Tensor:
        config, total = self.config, len(self.alphas_cumprod)
        rng = np.random.default_rng([self.seed, step])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        compared = config.contrast.images(config.batch_size) if self.wrong is not None else 0
        plain = config.batch_size - 2 * compared
        latents, text = self.cache.batch(rng, plain, config.caption_dropout)
        t = stratified_timesteps(plain, total, generator, tilt=config.noise_tilt)
        if not compared:
            return self._losses(unet, latents, text, t, generator).mean()
        index, wrong = self.wrong.draw(rng, compared, step / config.loop.steps)
        seen, right = self.cache.at(index)
        noisy = stratified_timesteps(compared, total, generator, tilt=config.contrast.noise_tilt)
        losses = self._losses(
            unet,
            torch.cat([latents, seen, seen]),
            torch.cat([text, right, wrong.to(right)]),
            torch.cat([t, noisy, noisy]),
            generator,
            repeated=compared,
        )
        of_right, of_wrong = losses[plain:].chunk(2)
        compare = contrast_loss(of_right, of_wrong, config.contrast.temperature)
        return losses[: plain + compared].mean() + config.contrast.weight * compare

    def _losses(
        self,
        unet: UNet2DConditionModel,
        latents: Tensor,
        text: Tensor,
        t: Tensor,
        generator: torch.Generator,
        repeated: int = 0,
    ) -> Tensor:
        """Mean squared error of v of each row; the last ``repeated`` rows share their noise."""
        noise = torch.randn(latents[: len(latents) - repeated].shape, generator=generator)
        noise = on_device(torch.cat([noise, noise[len(noise) - repeated :]]), self.device)
        latents, t = on_device(latents, self.device), on_device(t, self.device)
        alpha = self.alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - self.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
        states = self.preconditioner(on_device(text, self.device))
        arguments = (alpha * latents + sigma * noise, t, states)
        if self._denoise is None:
            self._denoise = captured(Denoiser(unet), arguments)
        predicted = self._denoise(*arguments)
        return (predicted - (alpha * noise - sigma * latents)).square().mean((1, 2, 3))


def train_denoiser(
    config: DenoiserConfig,
    cache: LatentCache,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    log: Callable[[str], None],
    start: UNet2DConditionModel | None = None,
    wrong: WrongWords | None = None,
) -> UNet2DConditionModel:
    """Train (or finish training) the UNet; returns it with averaged weights, in eval mode.

    Args:
        config: size and training; the size is ``start``'s where that is given.
        cache: latents and text states.
        folder: training folder; calling again continues there.
        seed: of initial weights and batches.
        device: where the network runs.
        log: receives progress lines.
        start: a UNet in single precision to go on from, trained in place.
        wrong: captions of the cache's rows that can be made wrong; none are when not given.
    """
    torch.manual_seed(seed)
    unet = (start or build_unet(config)).to(device).requires_grad_(True)
    objective = _Objective(config, cache, wrong, seed=seed, device=device)
    if start is not None:
        objective.preconditioner.enter(unet)
    loop = TrainingLoop(unet, config.loop, folder)
    unet.train()
    loop.run(lambda step: objective(unet, step), log=log)
    loop.load_average()
    objective.preconditioner.leave(unet)
    return unet.eval().requires_grad_(False)
