"""StableVITON's public checkpoint (arXiv 2312.01725) into its networks, and what trainings wrote.

    model.diffusion_model.*                     the denoiser of 13 channels, original (LDM) names
    model.diffusion_model.warp_flow_blks.{0-8}  transformer blocks, as diffusers has them
    model.diffusion_model.warp_zero_convs.{0-8}
    control_model.*                             the spatial encoder, original names, and
    control_model.cond_first_block.0            the garment's first convolution
    cond_stage_model.{mapper,final_ln}          blocks of the context token
    proj_out, learnable_vector                  its projection, and the token for nothing

    first_stage_model.*                         the VAE, which is tuned on VITON-HD

What the forward pass does not use (the encoder's middle block, ``lastzc``) is left out. The tuned
VAE is also in a file of its own, without prefix and with its training's ``loss.*``. The weights are
released for non-commercial use. A .ckpt is opened as tensors alone (weights_only).

    model = read_stable_viton(config, prior, image_hw=(512, 384))
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_tools.diffusion.ldm_names import decoder_names, encoder_names, translate
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.tensor_files import fill, read_flat, tensors_under
from image_tools.pocket.paths import adapter_path
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.own_modules import read_own
from image_tools.tryon.stable_viton import StableViton, StableVitonParts, seen_channels
from image_tools.tryon.stable_viton_configs import ContextSettings, StableVitonConfig
from image_tools.tryon.stable_viton_context import ContextHead, ContextMapper
from image_tools.tryon.stable_viton_nets import (
    EncoderSettings,
    SpatialEncoder,
    WarpBlocks,
    WarpedUnet,
    WarpSettings,
    warp_widths,
)
from image_tools.tryon.tryon_weights import read_unet
from image_tools.tryon.vaes import with_vae
from image_tools.vision.clip_images import ClipImages, load_clip_images

__all__ = [
    "StableVitonTensors",
    "context_settings",
    "read_stable_viton",
    "read_vae",
    "seen_config",
]

ROLE = "StableVITON"
UNET_PREFIX, ENCODER_PREFIX = "model.diffusion_model.", "control_model."
CONTEXT_PREFIX, VAE_PREFIX = "cond_stage_model.", "first_stage_model."
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
WARP_NAMES = {"warp_flow_blks.": "blocks.", "warp_zero_convs.": "zero_convs."}
UNUSED = ("middle_block.", "lastzc.")
SHOWN_KEYS = 5


class StableVitonTensors:
    """A checkpoint's tensors by part and by our names.

    Attributes:
        unet, encoder, warps, mapper, head: tensors of each part.
    """

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Translate an original checkpoint.

        Args:
            tensors: all of it; those of other parts are left out.
            config: settings of the denoiser, with its 13 channels.

        Raises:
            UnsupportedModel: naming the first tensors that belong nowhere.
        """
        names = {**encoder_names(config), **decoder_names(config)}
        own = tensors_under(tensors, UNET_PREFIX)
        self.warps = {
            key.replace(theirs, ours, 1): tensor
            for theirs, ours in WARP_NAMES.items()
            for key, tensor in own.items()
            if key.startswith(theirs)
        }
        warped = tuple(WARP_NAMES)
        self.unet = _translated(own, names, left_out=(*warped, *UNUSED[1:]))
        control = tensors_under(tensors, ENCODER_PREFIX)
        first = {"cond_first_block.0": "cond_first_block"}
        self.encoder = _translated(control, {**names, **first}, left_out=UNUSED)
        mapper = tensors_under(tensors, f"{CONTEXT_PREFIX}mapper.")
        final = tensors_under(tensors, f"{CONTEXT_PREFIX}final_ln.")
        self.mapper = mapper | {f"final_ln.{key}": tensor for key, tensor in final.items()}
        self.head = {
            key: tensor
            for key, tensor in tensors.items()
            if key.startswith("proj_out.") or key == "learnable_vector"
        }


def seen_config(base: nn.Module, latent_channels: int) -> dict[str, Any]:
    """Settings of the denoiser that sees a person, from those of Stable Diffusion's."""
    settings = {k: v for k, v in base.config.items() if not k.startswith("_")}
    return {**settings, "in_channels": latent_channels + seen_channels(latent_channels)}


def read_stable_viton(
    config: StableVitonConfig,
    prior: DiffusionPrior,
    *,
    image_hw: tuple[int, int],
    dtype: torch.dtype = torch.float32,
) -> StableViton:
    """All of StableVITON.

    Args:
        config: where the weights are.
        prior: Stable Diffusion 1.4 or its like: its schedule serves, and its VAE where neither the
            config nor the checkpoint has one.
        image_hw: rows and columns of the pictures, 512 and 384 for the authors' weights.
        dtype: number format of the denoiser.

    Raises:
        WeightsMissing: a part is absent or damaged.
        UnsupportedModel: tensors of another design.
    """
    places = {name: adapter_path(path, role=f"method.{name}") for name, path in config.models()}
    path, vae = places["model"], None
    clip = load_clip_images(places["image_encoder"], prior.device, dtype)
    if path.is_dir():
        unet, *others = _read_folder(path, dtype=dtype)
    else:
        tensors = read_flat(path, ROLE)
        unet, *others = _read_original(path, tensors, prior=prior, clip=clip, dtype=dtype)
        own = _vae_tensors(tensors)
        vae = _filled_vae(path, own, prior.vae) if own and "vae" not in places else None
    if "vae" in places:
        vae = read_vae(places["vae"], prior.vae)
    unet = unet.to(prior.device)
    encoder, warps, mapper, head = (net.to(prior.device, dtype) for net in others)
    denoiser = TryOnDenoiser(
        prior if vae is None else with_vae(prior, vae),
        WarpedUnet(unet, encoder, warps),
        extra_channels=seen_channels(prior.latent_channels) + prior.latent_channels,
        image_hw=image_hw,
    )
    return StableViton(denoiser, StableVitonParts(mapper, head, clip))


def _read_folder(path: Path, *, dtype: torch.dtype) -> tuple[nn.Module, ...]:
    """What a training wrote, beside its denoiser in the folder unet."""
    return (
        read_unet(path / "unet", dtype, role="denoiser of 13 channels"),
        read_own(SpatialEncoder, EncoderSettings, path / "encoder"),
        read_own(WarpBlocks, WarpSettings, path / "warps"),
        read_own(ContextMapper, ContextSettings, path / "mapper"),
        read_own(ContextHead, ContextSettings, path / "head"),
    )


def _read_original(
    path: Path,
    content: Mapping[str, Tensor],
    *,
    prior: DiffusionPrior,
    clip: ClipImages,
    dtype: torch.dtype,
) -> tuple[nn.Module, ...]:
    """The networks of the authors' checkpoint."""
    from diffusers import UNet2DConditionModel

    settings = seen_config(prior.unet, prior.latent_channels)
    tensors = StableVitonTensors(content, settings)
    build = partial(UNet2DConditionModel.from_config, settings)
    with torch.device("meta"):
        widths, context = warp_widths(build()), context_settings(clip, prior.unet)
    encoder = EncoderSettings(settings, prior.latent_channels)
    parts = (
        (build, tensors.unet, "a denoiser of 13 channels of the prior's design"),
        (partial(SpatialEncoder, encoder), tensors.encoder, "its spatial encoder"),
        (partial(WarpBlocks, widths), tensors.warps, "its warping blocks"),
        (partial(ContextMapper, context), tensors.mapper, "blocks for this image encoder"),
        (partial(ContextHead, context), tensors.head, "a projection of the context token"),
    )
    return tuple(
        fill(
            build,
            {name: tensor.to(dtype) for name, tensor in own.items()},
            what=f"'{path}'",
            expected=expected,
        )
        for build, own, expected in parts
    )


def context_settings(clip: ClipImages, unet: nn.Module) -> ContextSettings:
    """Sizes of the context token for an image encoder and a denoiser."""
    return ContextSettings(clip.width, text_width=unet.config.cross_attention_dim)


def read_vae(path: Path, like: nn.Module) -> nn.Module:
    """A VAE of another checkpoint, alone in it or in a whole model, in the design of one there is.

    Raises:
        WeightsMissing: the file holds none.
        UnsupportedModel: one of another design.
    """
    tensors = _vae_tensors(read_flat(path, ROLE))
    if not tensors:
        raise WeightsMissing(
            f"'{path}' holds no VAE: neither {VAE_PREFIX}* nor {VAE_PARTS[0]}*. Expected the one "
            "tuned on VITON-HD (VITONHD_VAE_finetuning.ckpt), or no vae."
        )
    return _filled_vae(path, tensors, like)


def _vae_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a VAE by their names in it; none where there is no VAE."""
    own = tensors_under(tensors, VAE_PREFIX) or tensors
    return {key: tensor for key, tensor in own.items() if key.startswith(VAE_PARTS)}


def _filled_vae(path: Path, tensors: Mapping[str, Tensor], like: nn.Module) -> nn.Module:
    """A VAE of these tensors, original names, in the design and number format of another."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    settings = {k: v for k, v in like.config.items() if not k.startswith("_")}
    found = convert_ldm_vae_checkpoint(dict(tensors), settings)
    dtype = next(like.parameters()).dtype
    return fill(
        partial(type(like).from_config, settings),
        {name: tensor.to(dtype) for name, tensor in found.items()},
        what=f"'{path}'",
        expected="a VAE of the prior's design",
    )


def _translated(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], *, left_out: tuple[str, ...]
) -> dict[str, Tensor]:
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(left_out)}
    translated = {key: translate(key, names) for key in own}
    unknown = [key for key, name in translated.items() if name is None]
    if unknown or not own:
        raise UnsupportedModel(
            f"{len(unknown)} of {len(own)} tensors belong nowhere in a StableVITON of these "
            f"settings: {', '.join(unknown[:SHOWN_KEYS])}. Expected VITONHD.ckpt and Stable "
            "Diffusion 1 as the prior."
        )
    return {translated[key]: tensor for key, tensor in own.items()}
