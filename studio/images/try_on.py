"""People in garments: for each seed the person, the garments, the mask, and what comes out.

    draw = make_try_on(prior, config)

Pictures and weights are read when it is made, before anything is drawn. What lies outside of the
mask is the person's own picture, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.loading import read_tensors
from image_tools.diffusion.lora_apply import attach_to_prior
from image_tools.diffusion.lora_files import read_lora
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.pocket.paths import adapter_files, adapter_path
from image_tools.tryon.bootcomp import BootCompPrior, portrait_denoiser
from image_tools.tryon.bootcomp_configs import BootCompConfig
from image_tools.tryon.cat_vton import CAT_CHANNELS, CatVtonPrior
from image_tools.tryon.cat_vton_configs import CatVtonConfig
from image_tools.tryon.cat_vton_weights import load_attention
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.idm_vton import IDM_CHANNELS, IdmVtonPrior
from image_tools.tryon.idm_vton_weights import read_idm_vton
from image_tools.tryon.ladi_configs import LadiVtonConfig
from image_tools.tryon.samples import Garment, TryOnSample
from image_tools.tryon.sampling import kept_outside, sample_portraits
from image_tools.tryon.stable_viton_configs import StableVitonConfig
from image_tools.tryon.tryon_weights import read_unet
from image_tools.tryon.vaes import read_stock_vae, with_vae
from image_tools.vision.clip_images import load_clip_images
from studio.images.configs import TryOnConfig
from studio.images.picture import Draw, Picture, noise_of
from studio.images.tryon_inputs import read_garments, read_sample
from studio.images.tryon_warped import ladi_dresser, stable_viton_dresser
from studio.progress import say

__all__ = ["make_try_on"]

Dress = Callable[[torch.Generator], Float[Tensor, "1 h w 3"]]
"""The person in the garments, painted everywhere."""
LORA_NAME = "garment"


def make_try_on(prior: DiffusionPrior, config: TryOnConfig) -> Draw:
    """What dresses by the scene's method.

    Raises:
        ConfigError: a picture cannot be read, or has another size than the person's.
        StudioError: no mask can be made.
        WeightsMissing: the model is not there.
        UnsupportedModel: it belongs to another prior.
    """
    if config.person is None:
        return _made_up(prior, config)
    sample = read_sample(config)
    dress = _dresser(prior, config, sample)
    shown = [
        *_garments(config, sample.garments),
        Picture("mask", "painted anew", sample.mask[0].expand(-1, -1, 3), is_compared=False),
    ]

    def draw(seed: int) -> list[Picture]:
        images = dress(noise_of(seed)).to(sample.person)
        return [
            Picture("person", "person", sample.person[0]),
            *shown,
            Picture("dressed", "dressed", sample.paste_back(images)[0], config.prompt),
        ]

    return draw


def _dresser(prior: DiffusionPrior, config: TryOnConfig, sample: TryOnSample) -> Dress:
    """What dresses a given person."""
    if isinstance(config.method, BootCompConfig):
        return _bootcomp(prior, config, sample)
    if isinstance(config.method, CatVtonConfig):
        return _cat_vton(prior, config, sample)
    if isinstance(config.method, LadiVtonConfig):
        return ladi_dresser(prior, config, sample)
    if isinstance(config.method, StableVitonConfig):
        return stable_viton_dresser(prior, config, sample)
    return _idm_vton(prior, config, sample)


def _made_up(prior: DiffusionPrior, config: TryOnConfig) -> Draw:
    """People that BootComp draws, with and without the garments."""
    garments = read_garments(config)
    tool = _generator(prior, config)
    shown = _garments(config, garments)
    cond, uncond = _texts(tool, config)

    def draw(seed: int) -> list[Picture]:
        images = []
        for worn in ((), garments):
            tool.wear(worn)
            images.append(
                sample_portraits(
                    tool, cond, uncond, generators=[noise_of(seed)], config=config.sampler
                )[0]
            )
        return [
            Picture("plain", "without garments", images[0], config.prompt),
            *shown,
            Picture("dressed", "with garments", images[1], config.prompt),
        ]

    return draw


def _bootcomp(prior: DiffusionPrior, config: TryOnConfig, sample: TryOnSample) -> Dress:
    """Garments inside of the mask; outside the person stays at every step."""
    tool = _generator(prior, config)
    tool.wear(sample.garments)
    cond, uncond = _texts(tool, config)

    def dress(generator: torch.Generator) -> Float[Tensor, "1 h w 3"]:
        after = kept_outside(
            tool, sample.person, sample.mask, generators=[generator], steps=config.sampler.steps
        )
        return sample_portraits(
            tool, cond, uncond, generators=[generator], config=config.sampler, after_step=after
        )

    return dress


def _idm_vton(prior: DiffusionPrior, config: TryOnConfig, sample: TryOnSample) -> Dress:
    """One garment by TryonNet."""
    folder = adapter_path(config.method.model, role="method.model")
    weights = read_idm_vton(folder, prior.dtype)
    denoiser = TryOnDenoiser(
        prior,
        weights.unet.to(prior.device),
        extra_channels=IDM_CHANNELS,
        image_hw=config.size,
        scheduler_config=weights.scheduler_config,
    )
    if config.method.garment_lora is not None:
        lora = adapter_path(config.method.garment_lora, role="method.garment_lora")
        attach_to_prior(denoiser, read_lora(Path(lora)), name=LORA_NAME)
    clip = load_clip_images(folder / "image_encoder", prior.device, prior.dtype)
    tool = IdmVtonPrior(
        denoiser,
        weights.garment_net.to(prior.device),
        weights.adapter.to(prior.device),
        clip,
    )
    if sample.densepose is None:
        say("body.densepose is not given: IDM-VTON draws without knowing the body's parts")
    tool.dress(sample)
    cond, uncond = _texts(tool, config)

    def dress(generator: torch.Generator) -> Float[Tensor, "1 h w 3"]:
        return sample_portraits(tool, cond, uncond, generators=[generator], config=config.sampler)

    return dress


def _cat_vton(prior: DiffusionPrior, config: TryOnConfig, sample: TryOnSample) -> Dress:
    """One garment by self-attention alone."""
    folder = adapter_path(config.method.unet, role="method.unet")
    place = folder / "unet" if (folder / "unet").is_dir() else folder
    unet = read_unet(place, prior.dtype, role="method.unet")
    files = adapter_files(config.method.attention, role="method.attention")
    load_attention(unet, read_tensors(files, "method.attention"))
    if config.method.vae is not None:
        vae = adapter_path(config.method.vae, role="method.vae")
        prior = with_vae(prior, read_stock_vae(vae, prior.vae))
    denoiser = TryOnDenoiser(
        prior, unet.to(prior.device), extra_channels=CAT_CHANNELS, image_hw=config.size
    )
    tool = CatVtonPrior(denoiser)
    tool.dress(sample)

    def dress(generator: torch.Generator) -> Float[Tensor, "1 h w 3"]:
        return tool.draw(generators=[generator], config=config.sampler)

    return dress


def _generator(prior: DiffusionPrior, config: TryOnConfig) -> BootCompPrior:
    """The scene's prior, for portraits, with an encoder of garments beside it."""
    folder = adapter_path(config.method.encoder, role="method.encoder")
    encoder = read_unet(folder, prior.dtype, role="method.encoder")
    portraits = portrait_denoiser(prior, prior.unet, image_hw=config.size)
    scale = config.method.garment_scale
    return BootCompPrior(portraits, encoder.to(prior.device), garment_scale=scale)


def _texts(
    tool: BootCompPrior | IdmVtonPrior, config: TryOnConfig
) -> tuple[TextEmbedding, TextEmbedding]:
    return tool.encode_prompt([config.prompt]), tool.encode_negative([config.negative_prompt])


def _garments(config: TryOnConfig, garments: tuple[Garment, ...]) -> list[Picture]:
    """As they show in the sheet."""
    return [
        Picture(f"garment{k}", one.words, garment.images[0], is_compared=False)
        for k, (one, garment) in enumerate(zip(config.garments, garments, strict=True), start=1)
    ]
