"""Denoisers that see more than noisy latents, and pictures that are not square.

Try-on models read masks and latents of other pictures in channels beside the noisy ones. Their
denoiser is a stock one with a wider first convolution: :func:`widen_conv_in` makes it of one that
is narrower. New weights are zero, so that it predicts as before until it is trained.

    unet = widen_conv_in(prior.unet, 13)
    denoiser = TryOnDenoiser(prior, unet, extra_channels=9, image_hw=(1024, 768))
    condition = Condition(text, additions=(ExtraChannels(torch.cat([mask, masked, pose], dim=1)),))
    output = denoiser.predict_output(latents, t, condition)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.prior import DiffusionPrior, PriorParts
from image_tools.editing.instruct_pix2pix import inflate_conv_in
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError, check_shape

__all__ = ["ExtraChannels", "TryOnDenoiser", "latent_mask", "widen_conv_in"]


def widen_conv_in(unet: nn.Module, channels: int) -> nn.Module:
    """A copy of a denoiser that takes ``channels`` in all, the first of which are those it knows.

    Raises:
        UnsupportedModel: if it takes more already.
    """
    known = unet.config.in_channels
    if channels < known:
        raise UnsupportedModel(
            f"The denoiser takes {known} channels already - expected at most {channels}. Name the "
            "text-to-image or inpainting model that the try-on model starts from."
        )
    return inflate_conv_in(unet, channels - known)


def latent_mask(mask: Float[Tensor, "b h w 1"], stride: int) -> Float[Tensor, "b 1 s t"]:
    """A mask at the latents' size, by the nearest pixel, as inpainting models are trained."""
    height, width = mask.shape[1:3]
    return F.interpolate(mask.movedim(-1, 1), (height // stride, width // stride), mode="nearest")


@dataclass(frozen=True)
class ExtraChannels:
    """What a denoiser sees beside the noisy latents."""

    channels: Float[Tensor, "rows k s t"]

    def __len__(self) -> int:
        return len(self.channels)

    def expand(self, rows: int) -> ExtraChannels:
        """A single row repeated, or itself where it has that many.

        Raises:
            ShapeError: if it has another number of rows.
        """
        if len(self) == rows:
            return self
        if len(self) != 1:
            raise ShapeError(f"Channels have {len(self)} rows for {rows} latents. Give {rows}.")
        return ExtraChannels(self.channels.expand(rows, -1, -1, -1))

    def stack(self, others: Sequence[ExtraChannels]) -> ExtraChannels:
        """More rows."""
        return ExtraChannels(torch.cat([self.channels, *(other.channels for other in others)]))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with these channels.

        Raises:
            ShapeError: if they and the noisy latents differ in size.
        """
        found, wanted = self.channels.shape[-2:], call.latents.shape[-2:]
        if found != wanted:
            raise ShapeError(
                f"Channels beside the latents are {list(found)}, the noisy latents "
                f"{list(wanted)}. Expected equal sizes."
            )
        return call.with_channels(self.channels.to(call.latents))


class TryOnDenoiser(DiffusionPrior):
    """A prior for pictures of one given size, whose denoiser takes channels beside the latents.

    VAE and text encoders are those of another prior.
    """

    def __init__(
        self,
        plain: DiffusionPrior,
        unet: nn.Module,
        *,
        extra_channels: int,
        image_hw: tuple[int, int],
        scheduler_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Put a denoiser beside a prior's.

        Args:
            plain: whose other parts serve, without tools around it.
            unet: a diffusers UNet2DConditionModel.
            extra_channels: channels that it takes beside the noisy latents.
            image_hw: height and width of the pictures, whole multiples of ``image_stride``.
            scheduler_config: of a stock scheduler; None for the prior's.

        Raises:
            UnsupportedModel: if it takes another number of channels, or reads other words.
            ShapeError: if the size is no such multiple.
            StudioError: if ``plain`` has tools around it.
        """
        if not isinstance(plain, DiffusionPrior):
            raise StudioError(
                f"Try-on got a {type(plain).__name__} - expected a plain prior, whose denoiser it "
                "replaces. Put other tools around it, not inside."
            )
        _refuse_other_words(plain.unet, unet)
        self.extra_channels, self._image_hw = extra_channels, image_hw
        super().__init__(
            PriorParts(
                unet=unet,
                vae=plain.vae,
                text=plain.text,
                scheduler_config=scheduler_config or plain.scheduler_config,
                fingerprint=plain.fingerprint,
                zero_negative=plain.zero_negative,
                aesthetics=plain.aesthetics,
            ),
            prompt_cache=plain.prompt_cache,
            keep_text_encoder=plain.keeps_text_encoder,
        )
        self._refuse_other_sizes()

    @property
    def latent_channels(self) -> int:
        """Channels of the noisy latents."""
        return self.vae.config.latent_channels

    @property
    def latent_stride(self) -> int:
        """Pixels for each latent along an axis."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_stride(self) -> int:
        """Pixels that the sides of pictures are multiples of, for the denoiser halves latents."""
        return self.latent_stride * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self._image_hw

    @property
    def latent_hw(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        height, width = self.image_hw
        return height // self.latent_stride, width // self.latent_stride

    def encode_posterior(
        self, images: Float[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b c s t"], Float[Tensor, "b c s t"]]:
        """Mean and standard deviation of pictures' scaled latents.

        Raises:
            ShapeError: if they do not have the size that was agreed: no person is stretched.
        """
        height, width = self.image_hw
        check_shape("images", images, f"B {height} {width} 3")
        return super().encode_posterior(images)

    def _refuse_other_sizes(self) -> None:
        stride, (height, width) = self.image_stride, self.image_hw
        if any(side < stride or side % stride for side in (height, width)):
            raise ShapeError(
                f"Pictures of {height}x{width} pixels do not fit the denoiser. Expected "
                f"multiples of {stride}; resize them."
            )

    def _refuse_unknown_designs(self) -> None:
        found, wanted = self.unet.config.in_channels, self.latent_channels + self.extra_channels
        if found != wanted:
            raise UnsupportedModel(
                f"The try-on denoiser takes {found} channels, expected {wanted}: "
                f"{self.latent_channels} noisy latents and {self.extra_channels} of what it sees "
                "beside them. Name the denoiser of this try-on model, or widen a plain one."
            )
        if self.unet.config.addition_embed_type not in (None, "text_time"):
            raise UnsupportedModel(
                f"The try-on denoiser wants '{self.unet.config.addition_embed_type}' conditions. "
                "Expected Stable Diffusion 1.x, 2.x or SDXL."
            )


def _refuse_other_words(plain: nn.Module, unet: nn.Module) -> None:
    known, read = (net.config.cross_attention_dim for net in (plain, unet))
    if known != read:
        raise UnsupportedModel(
            f"The try-on denoiser reads words of width {read}, the prior's have {known}. Expected "
            "a prior of the family that it was trained in; name another as the prior."
        )
