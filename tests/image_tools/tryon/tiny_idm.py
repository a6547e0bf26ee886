"""A tiny IDM-VTON with random weights, and folders in the layout of the public ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import nn

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.personalization.ip_adapter import IPAdapter, PlusProjector, layer_widths
from image_tools.personalization.perceiver import PerceiverSettings
from image_tools.tryon.extend import TryOnDenoiser, widen_conv_in
from image_tools.tryon.idm_vton import IDM_CHANNELS, IdmVtonPrior
from image_tools.tryon.idm_vton_weights import TEXT_ONLY, write_tryon_net
from image_tools.tryon.tryon_weights import STEM, fill_unet
from image_tools.vision.clip_images import ClipImages
from tests.image_tools.vision.tiny_clip import tiny_clip

__all__ = ["SIZE", "shaken", "tiny_adapter", "tiny_garment_net", "tiny_idm", "write_idm"]

SIZE = (24, 16)  # pixels


def shaken(module: nn.Module, seed: int, spread: float = 0.1) -> nn.Module:
    """A copy whose weights are moved."""
    other, generator = copy.deepcopy(module), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.add_(spread * draw.to(parameter))
    return other


def tiny_garment_net(prior: DiffusionPrior, seed: int = 2) -> nn.Module:
    """A denoiser like the prior's that is told nothing beside the text."""
    state = {n: t for n, t in prior.unet.state_dict().items() if not n.startswith("add_embedding.")}
    settings = {**prior.unet.config, **TEXT_ONLY}
    return shaken(fill_unet(settings, state, Path("tiny"), prior.dtype), seed)


def tiny_adapter(unet: nn.Module, image_width: int) -> IPAdapter:
    """An image prompt of four tokens."""
    settings = PerceiverSettings(
        image_width=image_width,
        width=16,
        text_width=unet.config.cross_attention_dim,
        depth=1,
        heads=1,
        tokens=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return IPAdapter(PlusProjector(settings), layer_widths(unet)).eval()


def tiny_idm(prior: DiffusionPrior) -> IdmVtonPrior:
    """TryonNet with all that it looks at."""
    unet = shaken(widen_conv_in(prior.unet, 4 + IDM_CHANNELS), 1)
    denoiser = TryOnDenoiser(prior, unet, extra_channels=IDM_CHANNELS, image_hw=SIZE)
    clip = ClipImages(tiny_clip())
    return IdmVtonPrior(denoiser, tiny_garment_net(prior), tiny_adapter(unet, clip.width), clip)


def write_idm(tool: IdmVtonPrior, folder: Path, garment_net: nn.Module | None = None) -> Path:
    """Write a folder in the layout of the public weights; returns it."""
    write_tryon_net(tool.denoiser.unet, tool.prompted.adapter, folder / "unet")
    net = tool.garment_net if garment_net is None else garment_net
    net.save_config(folder / "unet_encoder")
    write_safetensors(folder / f"unet_encoder/{STEM}.safetensors", dict(net.state_dict()), {})
    tool.clip.model.save_pretrained(folder / "image_encoder")
    (folder / "scheduler").mkdir()
    zero_terminal = {"rescale_betas_zero_snr": True, "set_alpha_to_one": False}
    schedule = {**tool.denoiser.scheduler_config, **zero_terminal}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(schedule))
    return folder
