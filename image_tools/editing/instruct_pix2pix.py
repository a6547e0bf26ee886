"""InstructPix2Pix (arXiv 2211.09800): a prior that edits an image by an instruction.

The denoiser has more input channels, in which it sees the latents of the image. Guidance has two
scales (Eq. 3), with c_I the image and c_T the instruction:

    eps = eps(0, 0) + s_I (eps(c_I, 0) - eps(0, 0)) + s_T (eps(c_I, c_T) - eps(c_I, 0))

s_T is the guidance scale that samplers and guidance rules pass, s_I belongs to the prior. The
formula holds for every pair of scales: s_I < 1 or s_T <= 1 do not switch guidance off, as in the
stock pipelines, and a term that counts nothing is not computed. The image's latents are the VAE
posterior's mode and, unlike the noisy ones, not scaled, unless the model was trained with scaled
ones.

    prior = InstructPix2PixPrior(prior, read_edit_unet(Path("ip2p")), images=images)
    edited = sample_images(prior, ["make it purple"], generators=[generator])

Without images the plain prior predicts, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.memory import share_attention_slicing
from image_tools.diffusion.modified import ModifiedPrior, rows_of
from image_tools.diffusion.prior import DiffusionPrior, PriorParts
from image_tools.diffusion.stock_rules import refuse_guidance_embedding
from image_tools.diffusion.two_scales import GuidanceScales, TwoScaleBranches, two_scale_noise
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError

__all__ = ["ConditionLatents", "ImageAddition", "InstructPix2PixPrior", "inflate_conv_in"]

ConditionLatents = Literal["unscaled", "scaled"]


def inflate_conv_in(unet: nn.Module, extra_channels: int) -> nn.Module:
    """A copy of a denoiser with more input channels, which it ignores until it is trained.

    Weights of the new channels are zero, everything else is copied, the bias too.
    """
    config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
    parameter = unet.conv_in.weight
    with torch.device("meta"):
        wide = type(unet).from_config(
            {**config, "in_channels": unet.config.in_channels + extra_channels}
        )
    tensors = {name: tensor.detach().clone() for name, tensor in unet.state_dict().items()}
    padding = parameter.new_zeros(
        parameter.shape[0], extra_channels, *parameter.shape[2:], requires_grad=False
    )
    tensors["conv_in.weight"] = torch.cat([parameter.detach(), padding], dim=1)
    wide.load_state_dict(tensors, strict=True, assign=True)
    return wide.train(unet.training)


@dataclass(frozen=True)
class ImageAddition:
    """Latents of an image in the channels beside the noisy ones."""

    latents: Float[Tensor, "rows c s s"]

    def __len__(self) -> int:
        return len(self.latents)

    def expand(self, rows: int) -> ImageAddition:
        """Itself, which has all rows already.

        Raises:
            ValueError: if it has another number of rows.
        """
        if len(self) != rows:
            raise ValueError(f"an image has {len(self)} rows for {rows} latents. Give {rows}.")
        return self

    def stack(self, others: Sequence[ImageAddition]) -> ImageAddition:
        """More rows."""
        return ImageAddition(torch.cat([self.latents, *(other.latents for other in others)]))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call with these channels.

        Raises:
            ShapeError: if image and noisy latents differ in size.
        """
        if self.latents.shape[-2:] != call.latents.shape[-2:]:
            found, wanted = list(self.latents.shape[-2:]), list(call.latents.shape[-2:])
            raise ShapeError(
                f"The edited image's latents are {found}, the noisy ones {wanted}. Expected equal "
                "sizes; encode the image with this prior."
            )
        return call.with_channels(self.latents.to(call.latents))


class _EditDenoiser(DiffusionPrior):
    """A prior whose denoiser takes an image's latents beside the noisy ones.

    It edits at the plain prior's size: the denoiser's own settings are those of its training, or
    of the model that it began as.
    """

    def __init__(self, plain: DiffusionPrior, unet: nn.Module) -> None:
        parts = PriorParts(
            unet=unet,
            vae=plain.vae,
            text=plain.text,
            scheduler_config=plain.scheduler_config,
            fingerprint=plain.fingerprint,
            zero_negative=plain.zero_negative,
            aesthetics=plain.aesthetics,
        )
        super().__init__(
            parts, prompt_cache=plain.prompt_cache, keep_text_encoder=plain.keeps_text_encoder
        )
        self._size = plain.latent_size

    @property
    def latent_size(self) -> int:
        """Rows and columns of the latents, as of the plain prior."""
        return self._size

    @property
    def latent_channels(self) -> int:
        """Channels of the noisy latents."""
        return self.vae.config.latent_channels

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents as the VAE makes them."""
        shift, scale = self._latent_shift_scale(latents)
        return latents / scale + shift

    def _refuse_unknown_designs(self) -> None:
        found, own = self.unet.config.in_channels, self.latent_channels
        if found != 2 * own:
            raise UnsupportedModel(
                f"The edit model takes {found} channels, expected {2 * own}: {own} noisy latents "
                "and as many of the image. Name an InstructPix2Pix denoiser, or inflate a plain "
                "one."
            )
        refuse_guidance_embedding(self.unet)
        if self.unet.config.addition_embed_type not in (None, "text_time"):
            raise UnsupportedModel(
                f"The edit model wants '{self.unet.config.addition_embed_type}' conditions. "
                "Expected Stable Diffusion 1.x, 2.x or SDXL."
            )


class InstructPix2PixPrior(ModifiedPrior):
    """A prior that follows instructions about given images."""

    def __init__(
        self,
        plain: DiffusionPrior,
        unet: nn.Module,
        *,
        images: Float[Tensor, "b h w 3"] | None = None,
        image_scale: float = 1.5,
        condition_latents: ConditionLatents = "unscaled",
    ) -> None:
        """Wrap a prior, whose VAE, text encoder and schedule serve.

        Args:
            plain: the prior that the edit model was trained from, without tools around it.
            unet: the edit model's denoiser.
            images: to be edited, in 0..1; one, or one for each latent. None: the plain prior.
            image_scale: s_I; higher keeps more of the image.
            condition_latents: how the edit model saw the image in training.

        Raises:
            UnsupportedModel: if ``unet`` does not take an image's latents.
            StudioError: if ``plain`` has tools around it.
        """
        super().__init__(plain)
        if not isinstance(plain, DiffusionPrior):
            raise StudioError(
                f"InstructPix2Pix got a {type(plain).__name__} - expected a plain prior, whose "
                "denoiser it replaces. Put other tools around it, not inside."
            )
        share_attention_slicing(plain.unet, unet)
        self.editor = _EditDenoiser(plain, unet)
        self.image_scale = image_scale
        self.condition_latents = condition_latents
        self.image_latents: Tensor | None = None
        self.show(images)

    def show(self, images: Float[Tensor, "b h w 3"] | None) -> None:
        """Edit other images, such as those of a step's cameras; None switches the tool off."""
        self.image_latents = None if images is None else self._encode(images)

    @property
    def unet(self) -> nn.Module:
        """The denoiser that predicts."""
        return self._active.unet

    @property
    def denoiser_evaluations(self) -> int:
        """Latents sent through both denoisers so far."""
        return self.plain.denoiser_evaluations + self.editor.denoiser_evaluations

    @denoiser_evaluations.setter
    def denoiser_evaluations(self, value: int) -> None:
        self.plain.denoiser_evaluations = value - self.editor.denoiser_evaluations

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The output for image and instruction together."""
        return self._active.predict_output(
            latents, t, self.modify(as_condition(condition), len(latents), is_cond=True)
        )

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition and, where images are given, their latents."""
        if self.image_latents is None:
            return condition
        return self._with_image(condition, rows, share=1.0)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Eq. 3 with s_T = ``guidance_scale``; ``rescale`` compares with eps(c_I, c_T)."""
        if self.image_latents is None:
            return self.plain.guided_noise(
                latents, t, cond, uncond, guidance_scale, rescale=rescale
            )
        rows = len(latents)
        cond, uncond = as_condition(cond), as_condition(uncond)
        branches = TwoScaleBranches(
            none=self._with_image(uncond, rows, share=0.0),
            shown=self._with_image(uncond, rows, share=1.0),
            both=self._with_image(cond, rows, share=1.0),
        )
        scales = GuidanceScales(text=guidance_scale, shown=self.image_scale)
        return two_scale_noise(self.editor, latents, t, branches, scales, rescale=rescale)

    @property
    def _active(self) -> DiffusionPrior:
        return self.plain if self.image_latents is None else self.editor

    @torch.no_grad()
    def _encode(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b c s s"]:
        latents = self.editor.encode_images(images)
        return latents if self.condition_latents == "scaled" else self.editor.unscaled(latents)

    def _with_image(self, condition: Condition, rows: int, *, share: float) -> Condition:
        """``share`` 1 shows the image, 0 the null image."""
        image = rows_of(self.image_latents, rows, "the edit")
        addition = ImageAddition(image if share else torch.zeros_like(image))
        condition = condition.expand(rows)
        return replace(condition, additions=(*condition.additions, addition))
