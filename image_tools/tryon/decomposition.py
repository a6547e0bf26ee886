"""BootComp's decomposition (arXiv 2412.16978, section 3.1): a product picture of a worn garment.

One network draws at t what it sees of a worn garment that was cut out of a photograph. The authors
send pairs of rows through it, noisy and clean: in self-attention noisy rows look at both and clean
ones at themselves, cross-attention is for noisy ones alone, and clean ones are at t = 0 without
pooled text. So clean rows never depend on noisy ones. Here they pass once, before the first step,
and noisy rows read what they left (``refbank``): the same predictions for half of the work.

"No garment" in guidance is the picture whose latents are zero, whose features are not.

    prior = DecompositionPrior(portrait_denoiser(plain, unet, image_hw=(512, 384)))
    prior.show(cut_out(photos, masks, (512, 384)))
    products = product_views(prior, ["upper"], generators=[generator])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows
from image_tools.tryon.bootcomp import word_for
from image_tools.tryon.bootcomp_configs import WORDS
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.refbank import (
    BankAddition,
    ReferenceBank,
    SilentCrossAttention,
    record_bank,
)
from image_tools.tryon.sampling import sample_portraits

__all__ = ["DecompositionPrior", "product_prompt", "product_views", "silent_features"]

PROMPT = "A product photo of {}"
SAMPLER = DdimConfig(steps=20, guidance_scale=2.0, eta=1.0)


class DecompositionPrior(ModifiedPrior):
    """A denoiser that draws what it is shown as a product picture."""

    def __init__(self, plain: TryOnDenoiser) -> None:
        """Nothing is shown yet: the denoiser alone.

        Args:
            plain: the decomposition network, without channels beside the latents.
        """
        super().__init__(plain)
        self._shown: tuple[ReferenceBank, ReferenceBank] | None = None

    @torch.no_grad()
    def show(self, references: Float[Tensor, "b h w 3"] | None) -> None:
        """Look at cut-out garments, grey around; None switches the tool off."""
        if references is None:
            self._shown = None
            return
        latents = self.plain.encode_images(references.to(self.plain.device))
        banks = (silent_features(self.plain, z) for z in (latents, torch.zeros_like(latents)))
        self._shown = tuple(banks)

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition and the garments, or the picture of nothing."""
        if self._shown is None:
            return condition
        condition = condition.expand(rows)
        sees = conditional_rows(condition, rows, is_cond=is_cond)
        garment, nothing = (bank.repeated(rows) for bank in self._shown)
        bank = garment.stack([nothing]).select(torch.arange(rows) + rows * ~sees)
        return replace(condition, additions=(*condition.additions, BankAddition(bank)))


def silent_features(denoiser: TryOnDenoiser, latents: Float[Tensor, "rows c h w"]) -> ReferenceBank:
    """Features of clean latents at t = 0, without text."""
    text = denoiser.encode_prompt([""]).expand(len(latents)).to(denoiser.device, denoiser.dtype)
    pooled = None if text.pooled is None else torch.zeros_like(text.pooled)
    silence = TextEmbedding(torch.zeros_like(text.tokens), pooled, text.aesthetic)
    return record_bank(
        denoiser.unet,
        latents.to(denoiser.device, denoiser.dtype),
        torch.zeros(len(latents), dtype=torch.long, device=denoiser.device),
        silence.tokens,
        added=denoiser.added_conditions(silence),
        operations=[SilentCrossAttention()],
    )


def product_prompt(category: GarmentCategory) -> str:
    """What the network is told of a garment."""
    return PROMPT.format(word_for(category, WORDS))


def product_views(
    prior: DecompositionPrior,
    categories: Sequence[GarmentCategory],
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig = SAMPLER,
) -> Float[Tensor, "b h w 3"]:
    """Product pictures of the garments that are shown, one for each category and generator."""
    cond = prior.encode_prompt([product_prompt(category) for category in categories])
    uncond = prior.encode_negative([""])
    return sample_portraits(prior, cond, uncond, generators=generators, config=config)
