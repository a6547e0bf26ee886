"""LaDI-VTON (arXiv 2305.13501): try-on by latent diffusion with words of the garment.

The denoiser of Stable Diffusion 2's inpainting model sees 31 channels:

    z_t 4 | mask 1, 1 = painted anew | latents of the person without the garment 4
    | heat maps of 18 keypoints | latents of the garment bent to the body 4

and a prompt in which 16 pseudo-words stand for the garment. Guidance leads away from an empty
prompt without bent garment and pose; mask and person stay. The VAE decodes with skip connections to
the person (EMASC), and outside of the mask the picture is the person's own.

Deviation: latents of pictures are the means of the VAE's posterior, where the authors draw them.

    model = LadiVton(denoiser, LadiParts(skips, adapter, bend, clip))
    images = model.dress(sample, generators=[generator], config=DdimConfig(steps=50))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.tryon.emasc import EmascPrior, SkipConnections
from image_tools.tryon.extend import ExtraChannels, TryOnDenoiser, latent_mask
from image_tools.tryon.ladi_warp import MODEL, GarmentWarp
from image_tools.tryon.ladi_words import InversionAdapter, describe, square
from image_tools.tryon.pose_maps import heat_maps
from image_tools.tryon.samples import KEYPOINT_NAMES, Garment, TryOnSample
from image_tools.tryon.sampling import sample_portraits
from image_tools.vision.clip_images import ClipImages

__all__ = ["LadiParts", "LadiVton", "extra_channels", "ladi_channels", "pseudo_words"]


def extra_channels(latent_channels: int) -> int:
    """Channels beside the noisy latents."""
    return 1 + 2 * latent_channels + len(KEYPOINT_NAMES)


@dataclass(frozen=True)
class LadiParts:
    """What LaDI-VTON has beside its denoiser."""

    skips: SkipConnections
    adapter: InversionAdapter
    bend: GarmentWarp
    clip: ClipImages


def ladi_channels(
    denoiser: TryOnDenoiser,
    sample: TryOnSample,
    *,
    no_warp: Bool[Tensor, " b"] | None = None,
    no_pose: Bool[Tensor, " b"] | None = None,
) -> ExtraChannels:
    """Mask, person, pose and bent garment.

    Args:
        denoiser: encodes the pictures.
        sample: with keypoints and the bent garment.
        no_warp: rows without the bent garment; none by default.
        no_pose: rows without the pose.
    """
    device, sample = denoiser.device, sample.hardened
    warped = denoiser.encode_images(sample.need("warped", model=MODEL).to(device))
    heat = heat_maps(sample.need("keypoints", model=MODEL).to(device), sample.size)
    pose = F.interpolate(heat, denoiser.latent_hw, mode="bilinear")
    mask = latent_mask(sample.mask.to(device), denoiser.latent_stride)
    person = denoiser.encode_images(sample.agnostic.to(device))
    pose, warped = (_without(x, rows) for x, rows in ((pose, no_pose), (warped, no_warp)))
    return ExtraChannels(torch.cat([mask, person, pose, warped], dim=1))


def pseudo_words(
    clip: ClipImages, adapter: InversionAdapter, garment: Garment
) -> Float[Tensor, "b words width"]:
    """Word embeddings of garments; differentiable in the adapter."""
    parameter = next(adapter.parameters())
    with torch.no_grad():
        tokens = clip.last_hidden(square(garment.images, clip.side))
    return adapter(tokens.to(parameter))


def _without(values: Tensor, rows: Tensor | None) -> Tensor:
    """Zeros in some rows."""
    if rows is None:
        return values
    return values * (~rows).to(values).reshape(-1, *[1] * (values.ndim - 1))


class LadiVton:
    """All networks of LaDI-VTON."""

    def __init__(self, denoiser: TryOnDenoiser, parts: LadiParts) -> None:
        """Put them together; the skip connections must fit the denoiser's VAE."""
        self.denoiser, self.parts = denoiser, parts
        self.prior = EmascPrior(denoiser, parts.skips)

    def bent(self, sample: TryOnSample) -> TryOnSample:
        """The sample with the garment bent to the body, as it is where that is known."""
        if sample.warped is not None:
            return sample
        return replace(sample, warped=self.parts.bend(sample))

    @torch.no_grad()
    def conditions(self, sample: TryOnSample) -> tuple[Condition, Condition]:
        """With and without words, bent garment and pose, a row for each person.

        Raises:
            StudioError: keypoints are absent, or there are several garments.
        """
        sample = self.bent(sample)
        garment, rows = sample.only_garment(model=MODEL).sized(sample.size), len(sample)
        words = pseudo_words(self.parts.clip, self.parts.adapter, garment)
        text = describe(self.denoiser.text, garment.categories, words).to(self.denoiser.device)
        nothing: TextEmbedding = self.denoiser.encode_negative([""]).expand(rows)
        every = torch.ones(rows, dtype=torch.bool, device=self.denoiser.device)
        shown = ladi_channels(self.denoiser, sample)
        hidden = ladi_channels(self.denoiser, sample, no_warp=every, no_pose=every)
        return Condition(text, additions=(shown,)), Condition(nothing, additions=(hidden,))

    @torch.no_grad()
    def dress(
        self,
        sample: TryOnSample,
        *,
        generators: Sequence[torch.Generator],
        config: DdimConfig,
    ) -> Float[Tensor, "b h w 3"]:
        """The people in the garments, one picture for each person and generator."""
        cond, uncond = self.conditions(sample)
        seen = sample.hardened
        with self.prior.showing(seen.agnostic, seen.mask):
            images = sample_portraits(
                self.prior, cond, uncond, generators=generators, config=config
            )
        return sample.paste_back(images.to(sample.person))
