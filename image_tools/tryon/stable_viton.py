"""StableVITON (arXiv 2312.01725): try-on by cross-attention to a garment's spatial features.

A frozen denoiser of 13 channels and its spatial encoder both see

    z_t 4 | person without the garment 4 | mask 1, here 1 = kept | body parts in colours 4

all but the mask as latents; the garment's latents enter the spatial encoder. The mask is the
sample's turned round and made smaller as the authors' tensors are, without antialiasing: each cell
is read between the pixels at its middle, so that few are soft. One token of
CLIP's view of the garment stands for words; the unconditional half of guidance has another, learnt
one and is the same otherwise.

Deviations: DDIM in the place of PLMS. Sampling begins with noise; ``start="person"`` begins as the
released code does, with the person's own latents at the last timestep, which leak into the result.
Latents of pictures are the means of the VAE's posterior.

    model = StableViton(denoiser, StableVitonParts(mapper, head, clip))
    images = model.dress(sample, generators=[generator], config=DdimConfig(guidance_scale=1.0))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.sampling import denoise_latents, unit_noise
from image_tools.tryon.extend import ExtraChannels, TryOnDenoiser
from image_tools.tryon.samples import Garment, TryOnSample
from image_tools.tryon.stable_viton_configs import StartLatents
from image_tools.tryon.stable_viton_context import ContextHead, ContextMapper, class_token
from image_tools.vision.clip_images import ClipImages

__all__ = [
    "StableViton",
    "StableVitonParts",
    "keep_mask",
    "seen_channels",
    "viton_channels",
]

MODEL = "StableVITON"


def seen_channels(latent_channels: int) -> int:
    """Channels that the denoiser sees beside the noisy latents, without the garment's."""
    return 2 * latent_channels + 1


def keep_mask(mask: Float[Tensor, "b h w 1"], size: tuple[int, int]) -> Float[Tensor, "b 1 s t"]:
    """1 where the person is kept; between 0 and 1 where the rim passes through a cell's middle."""
    return F.interpolate(1.0 - mask.movedim(-1, 1), size, mode="bilinear")


def viton_channels(denoiser: TryOnDenoiser, sample: TryOnSample) -> ExtraChannels:
    """Person, mask, body parts and garment.

    Raises:
        StudioError: the sample has no body parts, or several garments.
    """
    device, sample = denoiser.device, sample.hardened
    densepose = sample.need("densepose", model=MODEL).to(device)
    product = sample.only_garment(model=MODEL).sized(sample.size)
    pictures = (sample.agnostic.to(device), densepose, product.images.to(device))
    person, parts, garment = (denoiser.encode_images(picture) for picture in pictures)
    mask = keep_mask(sample.mask.to(device), denoiser.latent_hw)
    return ExtraChannels(torch.cat([person, mask, parts, garment], dim=1))


@dataclass(frozen=True)
class StableVitonParts:
    """What makes the context token."""

    mapper: ContextMapper
    head: ContextHead
    clip: ClipImages

    def context(self, garment: Garment) -> Float[Tensor, "b 1 width"]:
        """The garment's token; differentiable in mapper and head."""
        parameter = next(self.head.parameters())
        return self.head(self.mapper(class_token(self.clip, garment.images).to(parameter)))


class StableViton:
    """All networks of StableVITON."""

    def __init__(self, denoiser: TryOnDenoiser, parts: StableVitonParts) -> None:
        """Put them together; the denoiser's network is a ``WarpedUnet``."""
        self.denoiser, self.parts = denoiser, parts

    @torch.no_grad()
    def conditions(self, sample: TryOnSample) -> tuple[Condition, Condition]:
        """With the garment's token and with that for nothing, a row for each person.

        Raises:
            StudioError: the sample has no body parts, or several garments.
        """
        channels = (viton_channels(self.denoiser, sample),)
        garment = sample.only_garment(model=MODEL).sized(sample.size)
        told = TextEmbedding(self.parts.context(garment))
        nothing = TextEmbedding(self.parts.head.nothing(len(sample)))
        return Condition(told, additions=channels), Condition(nothing, additions=channels)

    @torch.no_grad()
    def dress(
        self,
        sample: TryOnSample,
        *,
        generators: Sequence[torch.Generator],
        config: DdimConfig,
        start: StartLatents = "noise",
    ) -> Float[Tensor, "b h w 3"]:
        """The people in the garments, one picture for each person and generator."""
        denoiser = self.denoiser
        cond, uncond = self.conditions(sample)
        shape = (denoiser.latent_channels, *denoiser.latent_hw)
        latents: Tensor = unit_noise(shape, generators, denoiser.device)
        if start == "person":
            own = denoiser.encode_images(sample.person.to(denoiser.device))
            last = denoiser.num_train_timesteps - 1  # whatever timestep the sampler begins at
            t = torch.full((len(sample),), last, device=denoiser.device)
            latents = add_noise(own, latents, *alpha_sigma(denoiser.alphas_cumprod, t, own))
        latents = denoise_latents(
            denoiser, latents, cond, uncond, generators=generators, config=config
        )
        return sample.paste_back(denoiser.decode_latents(latents).to(sample.person))
