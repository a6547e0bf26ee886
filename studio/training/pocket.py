"""The recipe of the shipped text-to-image prior, from nothing to a stock diffusers folder.

Stages, each resumable and skipped once finished: render images, train the autoencoder, prune the
text encoder, cache latents and text states, train the denoiser, write the folder with its card.
Everything is seeded; ``cpu`` needs hours on two cores, ``gpu`` minutes on one card.

Images are of the toybox and, for ``objects_share`` of them, of the training split of the pack of
real objects, seen by the same cameras and told in the same words. Each has caches of its own, so
that another share leaves the toybox's images and latents as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from scenes.objects.samples import ObjectSampleConfig
from scenes.toybox.samples import SampleConfig
from studio.errors import ConfigError
from studio.training.contrast import ContrastConfig, WrongWords
from studio.training.denoiser import (
    build_scheduler,
    cache_latents,
    cache_text,
    train_denoiser,
)
from studio.training.image_cache import ImageCache, cache_key, render_cache
from studio.training.mixed_latents import MixedLatents
from studio.training.pocket_recipe import PocketConfig
from studio.training.recoloring import recolor
from studio.training.start import begin_unet, frozen_parts, unet_digest, vae_digest
from studio.training.text import build_text_encoder, encode_captions
from studio.training.vae import image_batch, psnr_of, train_decoder, train_vae

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "cache_images",
    "cache_refinement",
    "refine_pocket",
    "train_pocket",
    "vae_figures",
    "write_pocket",
]


def _note_images(config: PocketConfig, work: Path) -> None:
    """Write down what the denoiser in ``work`` sees; refuse to go on with other images."""
    note, asked = work / "images.json", {"images": config.images, "seed": config.seed}
    asked |= {"object_images": config.object_images, "pair_images": config.pair_images}
    if (work / "unet" / "state.safetensors").exists():
        # A note that is missing, or does not tell of them, is from before there were any.
        none = {"object_images": 0, "pair_images": 0}
        seen = none | json.loads(note.read_text()) if note.exists() else asked | none
        if seen != asked:
            raise ConfigError(
                f"The training in {work} has seen {seen}, but {asked} is asked for. Give the "
                "preset and the share of objects that it began with (--objects-share, 0 for none), "
                "or name another work folder."
            )
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asked) + "\n")


def cache_images(config: PocketConfig, work: Path, *, log: Callable[[str], None]) -> ImageCache:
    """Render the training images of both worlds, or finish it, and open them as one cache.

    Args:
        config: how many images.
        work: training folder; toybox images are in ``images`` and ``pairs``, those of the pack in
            ``objects``.
        log: receives progress lines.

    Returns:
        The images, in this order.

    Raises:
        ConfigError: ``work`` holds other images, or a denoiser trained on others.
    """
    _note_images(config, work)
    folders = {work / "images": (SampleConfig(), config.images)}
    if config.object_images:
        folders[work / "objects"] = (ObjectSampleConfig(), config.object_images)
    if config.pair_images:
        folders[work / "pairs"] = (SampleConfig(pairs=1.0), config.pair_images)
    for folder, (samples, count) in folders.items():
        render_cache(
            folder,
            samples,
            count=count,
            seed=config.seed,
            log=lambda done, count: log(f"rendered {done}/{count}"),
        )
    return ImageCache(*folders)


def _encode(
    config: PocketConfig,
    work: Path,
    vae: AutoencoderKL,
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: str,
    log: Callable[[str], None],
) -> MixedLatents:
    """Latents and text states of the cached images, each world's in a folder of its own."""
    folders = {work / "latents": (work / "images", key)}
    for name, count in (("object", config.object_images), ("pair", config.pair_images)):
        if count:
            source = work / f"{name}s"
            folders[work / f"{name}_latents"] = (source, f"{key}/{cache_key(source)}")
    for folder, (source, own_key) in folders.items():
        images = ImageCache(source)
        cache_text(folder, images, encoder, tokenizer, log=log)
        cache_latents(folder, images, vae, key=own_key, log=log)
    return MixedLatents(*folders)


def _vae(config: PocketConfig, images: ImageCache, work: Path, start: Path | None, device, log):
    from diffusers import AutoencoderKL

    done, folder = work / "vae_model", work / "vae"
    if (done / "config.json").exists():
        return AutoencoderKL.from_pretrained(done, local_files_only=True).to(device).eval()
    before = frozen_parts(start, device)[0] if start is not None else None
    vae = train_vae(
        config.vae, images, folder, seed=config.seed, device=device, log=log, start=before
    )
    vae.save_pretrained(done)
    return vae


def _text(source: Path, work: Path, device):
    from transformers import AutoModel, AutoTokenizer

    folder = work / "text"
    if (source / "text_encoder").is_dir():
        folder = source
    elif not (folder / "text_encoder" / "config.json").exists():
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
    start: Path | None = None,
) -> None:
    """Run the recipe in the folder ``work`` and write the finished model to ``out``.

    Args:
        config: a preset or a variation of one.
        work: training folder; calling again continues there.
        text_source: transformers folder of all-MiniLM-L6-v2, or a pocket, whose text encoder stays.
        out: a new or existing folder, replaced file by file.
        device: where networks run; rendering is always on the CPU.
        log: receives progress lines.
        start: a pocket, of whose autoencoder and denoiser the weights are the first ones.

    Raises:
        ConfigError: the training in ``work`` began from another model, or saw other images.
    """
    unet = begin_unet(start, work) if start is not None else None
    images = cache_images(config, work, log=log)
    encoder, tokenizer = _text(text_source, work, device)
    vae = _vae(config, images, work, start, device, log)
    begun = vae_digest(start) if start is not None else None
    key = json.dumps([asdict(config.vae), config.seed, vae.config.scaling_factor, begun])
    latents = _encode(config, work, vae, encoder, tokenizer, key=key, log=log)
    unet = train_denoiser(
        config.denoiser,
        latents,
        work / "unet",
        seed=config.seed,
        device=device,
        log=log,
        start=unet,
        wrong=_wrong_words(config.denoiser.contrast, images, latents, encoder, tokenizer),
    )
    train_decoder(config.vae, vae, images, work / "decoder", seed=config.seed, log=log)
    facts = {
        **vae_figures(config, vae, work),
        "vae": json.loads((work / "vae" / "state.json").read_text()),
        "decoder": json.loads((work / "decoder" / "state.json").read_text()),
        "unet": json.loads((work / "unet" / "state.json").read_text()),
    }
    card = {"config": asdict(config), "facts": facts}
    if start is not None:
        card["start"] = unet_digest(start)
    write_pocket(vae, encoder, tokenizer, unet, out, card=card)


def _wrong_words(
    config: ContrastConfig,
    images: ImageCache,
    latents: MixedLatents,
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> WrongWords | None:
    """Captions to compare the cached ones with, where the training compares any."""
    if not config.share:
        return None
    encode = partial(encode_captions, encoder, tokenizer)
    return WrongWords(config, images.captions, latents.latents, encode)


def vae_figures(config: PocketConfig, vae: AutoencoderKL, work: Path) -> dict[str, float]:
    """PSNR in dB on toybox individuals and objects that no training saw, and on recoloured ones."""
    unseen = {"vae_psnr_db": SampleConfig(evaluation=True)}
    if config.object_images:
        unseen["vae_objects_psnr_db"] = ObjectSampleConfig(split="held_out")
    figures, count, seen = {}, min(256, config.images), []
    for name, samples in unseen.items():
        images = render_cache(work / "unseen" / name, samples, count=count, seed=config.seed)
        seen.append(image_batch(images, np.arange(len(images)), vae.device))
        figures[name] = round(psnr_of(vae, seen[-1]), 2)
    colors = recolor(torch.cat(seen), config.vae.recolor, torch.Generator().manual_seed(0))
    return figures | {"vae_recolored_psnr_db": round(psnr_of(vae, colors), 2)}


def cache_refinement(
    config: PocketConfig,
    work: Path,
    *,
    start: Path,
    device: torch.device,
    log: Callable[[str], None],
) -> MixedLatents:
    """Render and encode what :func:`refine_pocket` trains on, or finish it, without training.

    The arguments are those of :func:`refine_pocket`.
    """
    vae, encoder, tokenizer = frozen_parts(start, device)
    cache_images(config, work, log=log)
    key = f"refine/{vae_digest(start)}"
    return _encode(config, work, vae, encoder, tokenizer, key=key, log=log)


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
        ConfigError: the training in ``work`` began from another model, or saw other images.
    """
    unet = begin_unet(start, work)
    digest = unet_digest(start)
    latents = cache_refinement(config, work, start=start, device=device, log=log)
    vae, encoder, tokenizer = frozen_parts(start, device)
    images = cache_images(config, work, log=log)
    unet = train_denoiser(
        config.denoiser,
        latents,
        work / "unet",
        seed=config.seed,
        device=device,
        log=log,
        start=unet,
        wrong=_wrong_words(config.denoiser.contrast, images, latents, encoder, tokenizer),
    )
    before = start / "training.json"
    card = json.loads(before.read_text()) if before.is_file() else {}
    refined = {
        "start": digest,
        "config": asdict(config.denoiser),
        "images": config.images,
        "object_images": config.object_images,
        "pair_images": config.pair_images,
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
