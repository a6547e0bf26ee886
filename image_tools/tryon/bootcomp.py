"""BootComp's composition (arXiv 2412.16978, section 3.3): people in several garments at once.

A trained encoder, of the generator's own design, looks once at each garment, without noise and at
t = 0. What its self-attention sees is shown to a frozen generator (``refbank``), so that everything
that fits the generator still fits: ControlNets, LoRAs, other checkpoints, several views at once.
Guidance has two scales, with g the garments and c the text:

    eps = eps(0, 0) + s_g (eps(g, 0) - eps(0, 0)) + s_t (eps(g, c) - eps(g, 0))

s_t is the guidance scale that samplers and guidance rules pass, s_g belongs to the prior; the
authors take 4 and 2. eps(0, 0) sees features of zeros. (In the released code s_g cannot be changed
from the command line; here it can.)

    generator = portrait_denoiser(prior, prior.unet, image_hw=(768, 576))
    prior = BootCompPrior(generator, read_unet(Path("bootcomp/comp")), [shirt, trousers])
    images = sample_portraits(prior, cond, uncond, generators=generators, config=config)

The authors draw with a schedule whose last timestep is pure noise (arXiv 2305.08891), as does
:func:`portrait_denoiser`. Without garments the generator predicts, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.two_scales import GuidanceScales, TwoScaleBranches, two_scale_noise
from image_tools.tryon.bootcomp_configs import COMPOSITION_WORDS
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.pictures import fitted
from image_tools.tryon.refbank import BankAddition, ReferenceBank, check_bank_fits, record_bank
from image_tools.tryon.samples import Garment
from image_tools.tryon.sampling import ddpm_schedule
from renderers.errors import StudioError

__all__ = [
    "BootCompPrior",
    "clean_features",
    "garment_bank",
    "garment_prompt",
    "portrait_denoiser",
    "word_for",
]

PROMPT = "A photo of {}"
ZERO_SIGNAL = {"rescale_betas_zero_snr": True}


class BootCompPrior(ModifiedPrior):
    """A generator that dresses people."""

    def __init__(
        self,
        plain: NoisePrior,
        encoder: nn.Module,
        garments: Sequence[Garment] = (),
        *,
        garment_scale: float = 2.0,
    ) -> None:
        """Put an encoder beside a generator.

        Args:
            plain: the generator, with or without tools; frozen.
            encoder: a UNet of its design.
            garments: to be worn together. None: the generator alone.
            garment_scale: s_g; higher keeps more of the garments.

        Raises:
            UnsupportedModel: if the encoder is of another design.
        """
        super().__init__(plain)
        check_bank_fits(encoder, plain.unet)
        self.encoder = encoder.eval().requires_grad_(False)
        self.garment_scale = garment_scale
        self.bank: ReferenceBank | None = None
        self.wear(garments)

    def wear(self, garments: Sequence[Garment]) -> None:
        """Take other garments; none switches the tool off."""
        self.bank = garment_bank(self.plain, self.encoder, garments) if garments else None

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition and the garments; features of zeros for rows of the unconditional half."""
        if self.bank is None:
            return condition
        condition = condition.expand(rows)
        sees = conditional_rows(condition, rows, is_cond=is_cond)
        return self._shown(condition, rows, sees)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """The three predictions with s_t = ``guidance_scale``."""
        if self.bank is None:
            return self.plain.guided_noise(
                latents, t, cond, uncond, guidance_scale, rescale=rescale
            )
        rows = len(latents)
        cond, uncond = as_condition(cond), as_condition(uncond)
        branches = TwoScaleBranches(
            none=self._shown(uncond, rows, torch.zeros(rows)),
            shown=self._shown(uncond, rows, torch.ones(rows)),
            both=self._shown(cond, rows, torch.ones(rows)),
        )
        scales = GuidanceScales(text=guidance_scale, shown=self.garment_scale)
        return two_scale_noise(self.plain, latents, t, branches, scales, rescale=rescale)

    def _shown(self, condition: Condition, rows: int, sees: Tensor) -> Condition:
        """Garments for the rows that see them, and features of zeros for the others."""
        bank = self.bank.repeated(rows).scaled(sees.reshape(-1, 1, 1))
        condition = condition.expand(rows)
        return replace(condition, additions=(*condition.additions, BankAddition(bank)))


def portrait_denoiser(
    prior: DiffusionPrior, unet: nn.Module, *, image_hw: tuple[int, int]
) -> TryOnDenoiser:
    """A text-to-image denoiser for pictures of one size, with the schedule of BootComp's authors.

    Args:
        prior: whose VAE, text encoders and betas serve.
        unet: the prior's own, or BootComp's decomposition network.
        image_hw: height and width of the pictures.
    """
    schedule = {**ddpm_schedule(prior.scheduler_config), **ZERO_SIGNAL}
    return TryOnDenoiser(
        prior, unet, extra_channels=0, image_hw=image_hw, scheduler_config=schedule
    )


def word_for(
    category: GarmentCategory, words: Mapping[GarmentCategory, str] = COMPOSITION_WORDS
) -> str:
    """What one of BootComp's networks calls a garment.

    Raises:
        StudioError: if it was not taught it.
    """
    if category not in words:
        raise StudioError(
            f"BootComp does not know the category '{category}' - expected {', '.join(words)}. Say "
            "which of them the garment is."
        )
    return words[category]


def garment_prompt(category: GarmentCategory) -> str:
    """What the encoder of garments is told of one."""
    return PROMPT.format(word_for(category))


@torch.no_grad()
def garment_bank(
    prior: NoisePrior, encoder: nn.Module, garments: Sequence[Garment]
) -> ReferenceBank:
    """What a generator is shown of garments that are worn together, row by row.

    Args:
        prior: encodes pictures and words.
        encoder: looks at garments.
        garments: with equal numbers of rows.
    """
    banks = []
    for garment in garments:
        latents = prior.encode_images(fitted(garment.images, prior.image_hw).to(prior.device))
        words = [garment_prompt(category) for category in garment.categories]
        banks.append(clean_features(prior, encoder, latents, prior.encode_prompt(words)))
    return banks[0].beside(banks[1:])


def clean_features(
    prior: NoisePrior,
    encoder: nn.Module,
    latents: Float[Tensor, "rows c h w"],
    text: TextEmbedding,
) -> ReferenceBank:
    """Features of latents without noise at t = 0, with gradients where the encoder has them."""
    parameter = next(encoder.parameters())
    text = text.to(parameter.device, parameter.dtype)
    return record_bank(
        encoder,
        latents.to(parameter),
        torch.zeros(len(latents), dtype=torch.long, device=parameter.device),
        text.tokens,
        added=prior.added_conditions(text),
    )
