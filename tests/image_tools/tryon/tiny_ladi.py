"""A tiny LaDI-VTON with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.tryon.emasc import SkipConnections, skip_settings
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.ladi_configs import (
    AdapterSettings,
    LadiVtonConfig,
    RefinementSettings,
    WarpSettings,
)
from image_tools.tryon.ladi_vton import LadiParts, LadiVton, extra_channels
from image_tools.tryon.ladi_warp import GarmentWarp
from image_tools.tryon.ladi_words import InversionAdapter
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.warp_refine import RefinementNet
from image_tools.tryon.warp_tps import WarpNet
from image_tools.vision.clip_images import ClipImages
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_idm import shaken
from tests.image_tools.vision.tiny_clip import tiny_clip

__all__ = [
    "SIZE",
    "WARP",
    "WORDS",
    "ladi_sample",
    "tiny_adapter",
    "tiny_bend",
    "tiny_ladi",
    "write_ladi",
]

SIZE = (32, 24)  # pixels
WARP = WarpSettings(size=SIZE, width=2, halvings=1)
WORDS = 3


def ladi_sample(rows: int = 2) -> TryOnSample:
    """People whose garments are known where they are worn."""
    sample = tiny_sample(rows=rows, size=SIZE)
    return replace(sample, worn_mask=sample.mask, warped=sample.garments[0].images.flip(1))


def tiny_adapter(clip: ClipImages, text_width: int) -> InversionAdapter:
    """An adapter of three words."""
    settings = AdapterSettings(
        image_width=clip.width,
        image_heads=2,
        image_mlp=16,
        hidden=8,
        word_width=text_width,
        words=WORDS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return InversionAdapter(settings).eval()


def tiny_bend() -> GarmentWarp:
    """Networks that bend and paint a little."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return GarmentWarp(WarpNet(WARP), RefinementNet(RefinementSettings(width=2)))


def tiny_ladi(prior: DiffusionPrior) -> LadiVton:
    """All networks."""
    extra = extra_channels(prior.latent_channels)
    unet = shaken(widen_conv_in(prior.unet, prior.latent_channels + extra), 1)
    denoiser = TryOnDenoiser(prior, unet, extra_channels=extra, image_hw=SIZE)
    clip = ClipImages(tiny_clip())
    skips = shaken(SkipConnections(skip_settings(prior.vae)), 3)
    adapter = tiny_adapter(clip, prior.unet.config.cross_attention_dim)
    return LadiVton(denoiser, LadiParts(skips, adapter, tiny_bend(), clip))


def write_ladi(model: LadiVton, folder: Path) -> LadiVtonConfig:
    """The authors' files of a tiny model, and its image encoder's folder."""
    parts = model.parts
    nested = {"tps": parts.bend.tps, "refinement": parts.bend.refinement}
    torch.save(model.denoiser.unet.state_dict(), folder / "unet.pth")
    torch.save(parts.skips.state_dict(), folder / "emasc.pth")
    torch.save(parts.adapter.state_dict(), folder / "adapter.pth")
    torch.save({k: net.state_dict() for k, net in nested.items()}, folder / "warping.pth")
    parts.clip.model.save_pretrained(folder / "clip")
    parts.adapter.save_pretrained(folder / "adapter")
    for name, net in nested.items():
        net.save_pretrained(folder / name)
    return LadiVtonConfig(
        str(folder / "unet.pth"),
        str(folder / "emasc.pth"),
        str(folder / "adapter"),
        str(folder),
        str(folder / "clip"),
    )
