"""LaDI-VTON's public weights (arXiv 2305.13501) into its networks, and what trainings wrote.

    unet_*.pth                diffusers' names of an SD2 denoiser of 31 channels
    emasc_*.pth               conv.{0..4}.{0,2}
    inversion_adapter_*.pth   encoder_layers.0, post_layernorm, layers.{0,3,6}
    warping_*.pth             {"tps": ..., "refinement": ...}

They are released for non-commercial use. Files are opened as tensors alone (weights_only). Each may
also be a folder that a training wrote; for the warping networks one with tps and refinement in it.

    model = read_ladi(config, prior, image_hw=(512, 384))
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.tensor_files import fill, read_flat, tensors_under
from image_tools.pocket.paths import adapter_path
from image_tools.tryon.emasc import SkipConnections, skip_settings
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.ladi_configs import (
    AdapterSettings,
    EmascSettings,
    LadiVtonConfig,
    RefinementSettings,
    WarpSettings,
)
from image_tools.tryon.ladi_vton import LadiParts, LadiVton, extra_channels
from image_tools.tryon.ladi_warp import GarmentWarp
from image_tools.tryon.ladi_words import InversionAdapter
from image_tools.tryon.own_modules import read_own
from image_tools.tryon.tryon_weights import read_component
from image_tools.tryon.warp_refine import RefinementNet
from image_tools.tryon.warp_tps import WarpNet
from image_tools.vision.clip_images import ClipImages, load_clip_images

__all__ = ["read_adapter", "read_ladi", "read_skips", "read_unet", "read_warping", "wide_unet"]


def read_ladi(
    config: LadiVtonConfig,
    prior: DiffusionPrior,
    *,
    image_hw: tuple[int, int],
    dtype: torch.dtype = torch.float32,
) -> LadiVton:
    """All of LaDI-VTON.

    Args:
        config: where the weights are.
        prior: Stable Diffusion 2 (base): its VAE, text encoder and schedule serve.
        image_hw: rows and columns of the pictures, 512 and 384 for the authors' weights.
        dtype: number format of the denoiser.

    Raises:
        WeightsMissing: a part is absent or damaged.
        UnsupportedModel: tensors of another design.
    """
    places = {name: adapter_path(path, role=f"method.{name}") for name, path in config.models()}
    unet = read_unet(places["unet"], prior.unet, prior.latent_channels, dtype)
    denoiser = TryOnDenoiser(
        prior,
        unet.to(prior.device),
        extra_channels=extra_channels(prior.latent_channels),
        image_hw=image_hw,
    )
    clip = load_clip_images(places["image_encoder"], prior.device, dtype)
    adapter = read_adapter(places["adapter"], adapter_settings(clip, prior.unet))
    parts = LadiParts(
        skips=read_skips(places["emasc"], skip_settings(prior.vae)).to(prior.device),
        adapter=adapter.to(prior.device),
        bend=read_warping(places["warping"], prior.device),
        clip=clip,
    )
    return LadiVton(denoiser, parts)


def adapter_settings(clip: ClipImages, unet: nn.Module) -> AdapterSettings:
    """Sizes of the authors' adapter for an image encoder and the text width of a denoiser."""
    config = clip.model.config
    return AdapterSettings(
        image_width=config.hidden_size,
        image_heads=config.num_attention_heads,
        image_mlp=config.intermediate_size,
        activation=config.hidden_act,
        hidden=4 * config.hidden_size,
        word_width=unet.config.cross_attention_dim,
    )


def wide_unet(base: nn.Module, channels: int) -> nn.Module:
    """A denoiser of the base's design with another number of input channels, without weights."""
    settings = {k: v for k, v in base.config.items() if not k.startswith("_")}
    with torch.device("meta"):
        return type(base).from_config({**settings, "in_channels": channels})


def read_unet(
    path: Path, base: nn.Module, latent_channels: int, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """The denoiser of the authors' file or of a stock folder.

    Args:
        path: file or folder.
        base: the Stable Diffusion denoiser whose design it has.
        latent_channels: of the VAE.
        dtype: number format of the result.
    """
    tensors = {name: tensor.to(dtype) for name, tensor in _tensors(path, "denoiser").items()}
    channels = latent_channels + extra_channels(latent_channels)
    return fill(
        partial(wide_unet, base, channels),
        tensors,
        what=f"'{path}'",
        expected=f"a denoiser of {channels} channels of the base model's design",
    )


def read_skips(path: Path, settings: EmascSettings) -> SkipConnections:
    """The VAE's skip connections."""
    if path.is_dir():
        return read_own(SkipConnections, EmascSettings, path)
    return fill(
        partial(SkipConnections, settings),
        read_flat(path, "skip connections"),
        what=f"'{path}'",
        expected="the skip connections of this VAE (emasc_*.pth)",
    )


def read_adapter(path: Path, settings: AdapterSettings) -> InversionAdapter:
    """The inversion adapter; ``settings`` are for a file, a folder has its own."""
    if path.is_dir():
        return read_own(InversionAdapter, AdapterSettings, path)
    return fill(
        partial(InversionAdapter, settings),
        read_flat(path, "inversion adapter"),
        what=f"'{path}'",
        expected="an adapter for this image encoder (inversion_adapter_*.pth)",
    )


def read_warping(path: Path, device: torch.device) -> GarmentWarp:
    """Both networks that bend garments."""
    if path.is_dir():
        tps = read_own(WarpNet, WarpSettings, path / "tps")
        refinement = read_own(RefinementNet, RefinementSettings, path / "refinement")
        return GarmentWarp(tps.to(device), refinement.to(device))
    tensors = read_flat(path, "warping networks")
    parts = {part: tensors_under(tensors, f"{part}.") for part in ("tps", "refinement")}
    expected = "spline and refinement of LaDI-VTON (warping_*.pth)"
    # Settings are told by the weights, where versions of the authors' file may differ.
    has_bias = "inc.double_conv.0.bias" in parts["refinement"]
    refinement = replace(RefinementSettings(), bias=has_bias)
    tps_net, refine_net = (
        fill(build, parts[part], what=f"'{path}' ({part})", expected=expected)
        for part, build in (
            ("tps", partial(WarpNet, WarpSettings())),
            ("refinement", partial(RefinementNet, refinement)),
        )
    )
    return GarmentWarp(tps_net.to(device), refine_net.to(device))


def _tensors(path: Path, role: str) -> dict[str, Tensor]:
    if not path.is_dir():
        return read_flat(path, role)
    return read_component(path / "unet" if (path / "unet").is_dir() else path, role=role)
