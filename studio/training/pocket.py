"""The recipe of the shipped text-to-image prior, from nothing to a stock diffusers folder.

Stages, each resumable and skipped once finished: render images, train the autoencoder, prune the
text encoder, cache latents and text states, train the denoiser, write the folder with its card.
Everything is seeded; ``cpu`` needs hours on two cores, ``gpu`` minutes on one card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scenes.toybox.samples import SampleConfig
from studio.training.denoiser import (
    DenoiserConfig,
    LatentCache,
    build_scheduler,
    cache_latents,
    cache_text,
    train_denoiser,
)
from studio.training.image_cache import ImageCache, render_cache
from studio.training.loop import LoopConfig
from studio.training.start import begin_unet, frozen_parts, unet_digest, vae_digest
from studio.training.text import build_text_encoder
from studio.training.vae import VAEConfig, image_batch, psnr_of, train_decoder, train_vae

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "PRESETS",
    "REFINE_PRESETS",
    "PocketConfig",
    "refine_pocket",
    "train_pocket",
    "write_pocket",
]


@dataclass(frozen=True)
class PocketConfig:
    """All choices of the recipe."""

    images: int = 40_000
    """Rendered training images."""
    seed: int = 1
    """Seed of data, initial weights and batches."""
    vae: VAEConfig = field(default_factory=VAEConfig)
    """The autoencoder."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    """The UNet."""


_GPU_LOOP = LoopConfig(steps=60_000, learning_rate=8e-4, warmup=500, ema_decay=0.9995)

PRESETS: dict[str, PocketConfig] = {
    "cpu": PocketConfig(),
    "gpu": PocketConfig(
        images=200_000,
        vae=replace(VAEConfig(), batch_size=64, loop=replace(VAEConfig().loop, steps=12_000)),
        denoiser=DenoiserConfig(batch_size=128, loop=_GPU_LOOP),
    ),
}
REFINE_PRESETS: dict[str, PocketConfig] = {
    name: replace(
        preset,
        seed=2,
        denoiser=replace(
            preset.denoiser,
            noise_tilt=1.25,
            loop=replace(preset.denoiser.loop, steps=steps, learning_rate=4e-4, warmup=100),
        ),
    )
    for (name, preset), steps in zip(PRESETS.items(), (3000, 20_000))
}
"""To go on from a finished model: new images, and more draws of the noisy timesteps, in which a
sample's layout and side are decided."""


def _vae(config: PocketConfig, images: ImageCache, work: Path, device, log):
    from diffusers import AutoencoderKL

    done = work / "vae_model"
    if (done / "config.json").exists():
        return AutoencoderKL.from_pretrained(done, local_files_only=True).to(device).eval()
    vae = train_vae(config.vae, images, work / "vae", seed=config.seed, device=device, log=log)
    vae.save_pretrained(done)
    return vae


def _text(source: Path, work: Path, device):
    from transformers import AutoModel, AutoTokenizer

    folder = work / "text"
    if not (folder / "text_encoder" / "config.json").exists():
        build_text_encoder(source, folder)
    encoder = AutoModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return encoder.to(device).eval(), tokenizer


def train_pocket(
    config: PocketConfig,
    work: Path,
    *,
    text_source: Path,
    out: Path,
    device: torch.device,
    log: Callable[[str], None],
) -> None:
    """Run the recipe in the folder ``work`` and write the finished model to ``out``.

    Args:
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        text_source: transformers folder of all-MiniLM-L6-v2.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.
    """
    images = render_cache(
        work / "images",
        SampleConfig(),
        count=config.images,
        seed=config.seed,
        log=lambda done, count: log(f"rendered {done}/{count}"),
    )
    encoder, tokenizer = _text(text_source, work, device)
    cache_text(work / "latents", images, encoder, tokenizer, log=log)
    vae = _vae(config, images, work, device, log)
    key = json.dumps([asdict(config.vae), config.seed, vae.config.scaling_factor])
    cache_latents(work / "latents", images, vae, key=key, log=log)
    latents = LatentCache(work / "latents")
    unet = train_denoiser(
        config.denoiser, latents, work / "unet", seed=config.seed, device=device, log=log
    )
    # Individuals that training never saw, so the figure does not flatter.
    unseen = render_cache(
        work / "unseen_images",
        SampleConfig(evaluation=True),
        count=min(256, config.images),
        seed=config.seed,
    )
    train_decoder(
        config.vae, vae, images, latents.latents, work / "decoder", seed=config.seed, log=log
    )
    test = image_batch(unseen, np.arange(len(unseen)), device)
    facts = {
        "vae_psnr_db": round(psnr_of(vae, test), 2),
        "vae": json.loads((work / "vae" / "state.json").read_text()),
        "decoder": json.loads((work / "decoder" / "state.json").read_text()),
        "unet": json.loads((work / "unet" / "state.json").read_text()),
    }
    card = {"config": asdict(config), "facts": facts}
    write_pocket(vae, encoder, tokenizer, unet, out, card=card)


def refine_pocket(
    config: PocketConfig,
    work: Path,
    *,
    start: Path,
    out: Path,
    device: torch.device,
    log: Callable[[str], None],
) -> None:
    """Train the denoiser of a finished model on, keeping its autoencoder and text encoder.

    Args:
        config: a preset or a variation of one; the sizes are the model's.
        work: training folder; calling again continues there.
        start: the model to go on from, in stock diffusers layout.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.

    Raises:
        ValueError: the training in ``work`` began from another model.
    """
    unet = begin_unet(start, work)
    digest = unet_digest(start)
    vae, encoder, tokenizer = frozen_parts(start, device)
    images = render_cache(
        work / "images",
        SampleConfig(),
        count=config.images,
        seed=config.seed,
        log=lambda done, count: log(f"rendered {done}/{count}"),
    )
    cache_text(work / "latents", images, encoder, tokenizer, log=log)
    cache_latents(work / "latents", images, vae, key=f"refine/{vae_digest(start)}", log=log)
    unet = train_denoiser(
        config.denoiser,
        LatentCache(work / "latents"),
        work / "unet",
        seed=config.seed,
        device=device,
        log=log,
        start=unet,
    )
    before = start / "training.json"
    card = json.loads(before.read_text()) if before.is_file() else {}
    refined = {
        "start": digest,
        "config": asdict(config.denoiser),
        "images": config.images,
        "seed": config.seed,
        "unet": json.loads((work / "unet" / "state.json").read_text()),
    }
    card["refinements"] = [*card.get("refinements", []), refined]
    write_pocket(vae, encoder, tokenizer, unet, out, card=card)


def write_pocket(
    vae: AutoencoderKL,
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    unet: UNet2DConditionModel,
    out: Path,
    *,
    card: dict,
) -> None:
    """A stock ``StableDiffusionPipeline`` folder in half precision; ``card`` tells its making."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae.cpu().half(),
        text_encoder=encoder.cpu().half(),
        tokenizer=tokenizer,
        unet=unet.cpu().half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    for path in out.glob("*/config.json"):
        settings = json.loads(path.read_text())
        settings.pop("_name_or_path", None)  # a path on the training machine
        if path.parent.name == "text_encoder":
            # Half precision on disk, single precision in use: transformers follows the config.
            settings["dtype"] = "float32"
        path.write_text(json.dumps(settings, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(card, indent=2) + "\n")
