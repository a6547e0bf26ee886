"""A tiny StableVITON with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.samples import TryOnSample
from image_tools.tryon.stable_viton import StableViton, StableVitonParts, seen_channels
from image_tools.tryon.stable_viton_configs import ContextSettings, StableVitonConfig
from image_tools.tryon.stable_viton_context import ContextHead, ContextMapper
from image_tools.tryon.stable_viton_nets import (
    SpatialEncoder,
    WarpBlocks,
    WarpedUnet,
    warp_widths,
)
from image_tools.vision.clip_images import ClipImages
from tests.image_tools.tryon.people import tiny_sample
from tests.image_tools.tryon.tiny_idm import shaken
from tests.image_tools.vision.tiny_clip import tiny_clip

__all__ = ["SIZE", "tiny_viton", "viton_sample", "write_viton"]

SIZE = (32, 24)  # pixels


def viton_sample(rows: int = 2) -> TryOnSample:
    """People whose garments are known where they are worn."""
    sample = tiny_sample(rows=rows, size=SIZE)
    return replace(sample, worn_mask=sample.mask)


def tiny_viton(prior: DiffusionPrior, *, trained: bool = True) -> StableViton:
    """All networks; untrained ones change nothing."""
    channels, seen = prior.latent_channels, seen_channels(prior.latent_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        unet = shaken(widen_conv_in(prior.unet, channels + seen), 1)
        encoder, warps = SpatialEncoder.from_unet(unet), WarpBlocks(warp_widths(unet))
        clip = ClipImages(tiny_clip())
        context = ContextSettings(clip.width, 2, prior.unet.config.cross_attention_dim)
        mapper, head = ContextMapper(context), ContextHead(context)
    if trained:
        encoder, warps = shaken(encoder, 2), shaken(warps, 3)
    net = WarpedUnet(unet, encoder, warps)
    denoiser = TryOnDenoiser(prior, net, extra_channels=seen + channels, image_hw=SIZE)
    return StableViton(denoiser, StableVitonParts(mapper, head, clip))


def write_viton(model: StableViton, folder: Path) -> StableVitonConfig:
    """Folders as a training leaves them, with denoiser and image encoder."""
    net = model.denoiser.unet
    parts = {"encoder": net.encoder, "warps": net.warps, "unet": net.unet}
    parts |= {"mapper": model.parts.mapper, "head": model.parts.head}
    for name, module in {**parts, "clip": model.parts.clip.model}.items():
        module.save_pretrained(folder / name)
    return StableVitonConfig(str(folder), str(folder / "clip"))
