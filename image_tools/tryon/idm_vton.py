"""IDM-VTON (arXiv 2403.05139): people in a garment, from a picture of each.

TryonNet is SDXL's inpainting denoiser with thirteen channels: noisy latents, mask, the person
without what is painted anew, and the body's parts in colours, all in latents. It knows the garment
in two ways (section 3.2):

    GarmentNet     SDXL's denoiser, frozen, looks at the garment's clean latents at the timestep of
                   the step and with the words "a photo of ..."; TryonNet's self-attention sees what
                   its own saw (``refbank``)
    image prompt   an IP-Adapter-plus shows what CLIP sees of the garment

The unconditional half of guidance has the same channels, features of zeros, CLIP's tokens of zero
pixels, and the negative prompt. The authors take guidance 2 and 30 steps of DDPM (``eta`` 1).
Without body parts (``densepose``) their channels are the latents of black, which the model was not
trained with: a degraded mode, for photographs of which they are not known.

    denoiser = TryOnDenoiser(
        prior, weights.unet, extra_channels=IDM_CHANNELS, image_hw=(1024, 768),
        scheduler_config=weights.scheduler_config,
    )
    tool = IdmVtonPrior(denoiser, weights.garment_net, weights.adapter, clip)
    tool.dress(sample)
    images = sample.paste_back(sample_portraits(tool, cond, uncond, ...))

Deviation: latents of pictures are the mean of the VAE's posterior, not a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.additions import DenoiserCall, scatter_rows
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows, rows_of
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.ip_adapter import IPAdapter
from image_tools.personalization.ip_adapter_prior import IPAdapterPrior
from image_tools.personalization.reference_features import ReferenceFeatures, encode_references
from image_tools.tryon.extend import ExtraChannels, TryOnDenoiser, latent_mask
from image_tools.tryon.pictures import fitted
from image_tools.tryon.refbank import BankReader, ReferenceBank, check_bank_fits, record_bank
from image_tools.tryon.samples import Garment, TryOnSample
from image_tools.vision.clip_images import ClipImages
from renderers.errors import ShapeError, StudioError

__all__ = [
    "IDM_CHANNELS",
    "NEGATIVE_PROMPT",
    "GarmentAddition",
    "IdmVtonPrior",
    "garment_features",
    "person_channels",
    "worn_prompts",
]

MODEL = "IDM-VTON"
IDM_CHANNELS = 9
NEGATIVE_PROMPT = "monochrome, lowres, bad anatomy, worst quality, low quality"
GARMENT_PROMPT, WORN_PROMPT = "a photo of {}", "model is wearing {}"


def worn_prompts(garment: Garment) -> list[str]:
    """What the authors tell TryonNet of each row's garment."""
    return [WORN_PROMPT.format(caption) for caption in garment.captions]


@dataclass(frozen=True)
class GarmentAddition:
    """A garment for each row of a call, which GarmentNet looks at when the call comes."""

    net: nn.Module
    latents: Float[Tensor, "rows c s t"]
    text: Float[Tensor, "rows length width"]
    sees: Bool[Tensor, " rows"]
    """Rows that see it; the others see features of zeros."""

    def __len__(self) -> int:
        return len(self.latents)

    def expand(self, rows: int) -> GarmentAddition:
        """Itself, which has all rows already.

        Raises:
            ShapeError: if it has another number of rows.
        """
        if len(self) != rows:
            raise ShapeError(f"Garments have {len(self)} rows for {rows} latents. Give {rows}.")
        return self

    def stack(self, others: Sequence[GarmentAddition]) -> GarmentAddition:
        """More rows of the same net."""

        def below(name: str) -> Tensor:
            return torch.cat([getattr(one, name) for one in (self, *others)])

        return GarmentAddition(self.net, below("latents"), below("text"), below("sees"))

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """The call, seeing the garments as GarmentNet does at its timesteps."""
        return call.with_operations(BankReader(self.features(call.t)))

    @torch.no_grad()
    def features(self, t: Tensor) -> ReferenceBank:
        """What GarmentNet's self-attention sees; zeros in rows without a garment."""
        parameter = next(self.net.parameters())
        chosen = self.sees.nonzero()[:, 0].to(parameter.device)
        shown = chosen if len(chosen) else torch.zeros(1, dtype=torch.long, device=chosen.device)
        bank = record_bank(
            self.net,
            self.latents.to(parameter)[shown],
            t.to(parameter.device)[shown],
            self.text.to(parameter)[shown],
        )
        if not len(chosen):
            return bank.zeros().repeated(len(self))
        parts = bank.features.items()
        return ReferenceBank({n: scatter_rows(v, chosen, len(self)) for n, v in parts})


class IdmVtonPrior(ModifiedPrior):
    """TryonNet with everything that it looks at."""

    def __init__(
        self,
        denoiser: TryOnDenoiser,
        garment_net: nn.Module,
        adapter: IPAdapter,
        clip: ClipImages,
    ) -> None:
        """Nobody is dressed yet.

        Args:
            denoiser: TryonNet.
            garment_net: SDXL's denoiser without what it is told beside the text.
            adapter: the image prompt.
            clip: sees garments for it.

        Raises:
            UnsupportedModel: the two denoisers are of different designs.
        """
        check_bank_fits(garment_net, denoiser.unet)
        self.prompted = IPAdapterPrior(denoiser, adapter)
        super().__init__(self.prompted)
        self.denoiser, self.clip = denoiser, clip
        self.garment_net = garment_net.eval().requires_grad_(False)
        self._channels: Tensor | None = None
        self._garment: tuple[Tensor, TextEmbedding] | None = None

    @torch.no_grad()
    def dress(self, sample: TryOnSample) -> None:
        """Take people and their garments; rows of calls are theirs, or repeat them.

        Raises:
            ShapeError: pictures are not of the denoiser's size.
            StudioError: there are several garments; IDM-VTON knows one at a time.
        """
        self.show(*self.look(sample))

    @torch.no_grad()
    def look(self, sample: TryOnSample) -> tuple[ReferenceFeatures, ReferenceFeatures]:
        """All of :meth:`dress` but the image prompt: what it shall show, and what in its place.

        Raises:
            ShapeError: pictures are not of the denoiser's size.
            StudioError: there are several garments; IDM-VTON knows one at a time.
        """
        garment = sample.only_garment(model=MODEL)
        self._channels = person_channels(self.denoiser, sample)
        self._garment = garment_features(self.denoiser, garment)
        images = garment.images.to(self.denoiser.device)
        return encode_references(images, part="hidden", clip=self.clip)

    def show(self, present: ReferenceFeatures, absent: ReferenceFeatures) -> None:
        """Give each row its image prompt, with gradients where the adapter has them."""
        adapter = self.prompted.adapter
        like = next(adapter.parameters())
        tokens = (adapter.tokens(part.to(like))[:, None] for part in (present, absent))
        self.prompted.show_tokens(*tokens)

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with channels and garments for each row.

        Raises:
            StudioError: nobody is dressed.
        """
        if self._channels is None or self._garment is None:
            raise StudioError("IDM-VTON has nobody to dress. Call dress(sample) first.")
        latents, text = self._garment
        condition = condition.expand(rows)
        garment = GarmentAddition(
            self.garment_net,
            rows_of(latents, rows, "the garment"),
            rows_of(text.tokens, rows, "the garment's words"),
            conditional_rows(condition, rows, is_cond=is_cond),
        )
        channels = ExtraChannels(rows_of(self._channels, rows, "the person"))
        return replace(condition, additions=(*condition.additions, channels, garment))


def person_channels(denoiser: TryOnDenoiser, sample: TryOnSample) -> Float[Tensor, "b 9 s t"]:
    """Mask, the person without what is painted anew, and body parts, as TryonNet reads them.

    Raises:
        ShapeError: pictures are not of the denoiser's size.
    """
    sample = sample.to(denoiser.device).hardened
    parts = sample.densepose
    pose = torch.zeros_like(sample.person) if parts is None else parts
    latents = (denoiser.encode_images(pictures) for pictures in (sample.agnostic, pose))
    return torch.cat([latent_mask(sample.mask, denoiser.latent_stride), *latents], dim=1)


def garment_features(
    denoiser: TryOnDenoiser, garment: Garment
) -> tuple[Float[Tensor, "b c s t"], TextEmbedding]:
    """Clean latents of garments, and the words that GarmentNet is told."""
    pictures = fitted(garment.images, denoiser.image_hw).to(denoiser.device)
    text = encode_text(denoiser, [GARMENT_PROMPT.format(one) for one in garment.captions])
    return denoiser.encode_images(pictures), text
