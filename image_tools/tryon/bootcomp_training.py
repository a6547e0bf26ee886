"""Training of BootComp's two networks (arXiv 2412.16978, sections 3.1 and 3.3).

Both learn to predict noise:

    decomposition   || f(z_t(product); t, "A product photo of ...", cut-out garment) - target ||^2
                    over the whole network, which also looks at the clean garment
    composition     || g(z_t(person); t, caption, garments) - target ||^2
                    over the encoder of garments alone; the generator is frozen and passes the
                    gradient on through what its self-attention reads

Batch k depends on its number and the generator alone, so that a killed training goes on bit for
bit. What is written are stock diffusers folders: ``decomp`` and ``comp``.

    train_decomposition(denoiser, batches, DecompositionTrainingConfig(), folder, identity="...")
    train_composition(prior, encoder, batches, CompositionTrainingConfig(), folder, identity="...")
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.captioned import encode_text
from image_tools.personalization.denoising import denoising_errors, draw_noisy
from image_tools.personalization.dreambooth import TrainingResult
from image_tools.personalization.loop import LoopHooks
from image_tools.tryon.bootcomp import clean_features, garment_prompt
from image_tools.tryon.bootcomp_configs import (
    CompositionTrainingConfig,
    DecompositionTrainingConfig,
)
from image_tools.tryon.decomposition import product_prompt, silent_features
from image_tools.tryon.extend import TryOnDenoiser
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.pictures import fitted
from image_tools.tryon.refbank import BankAddition, ReferenceBank, check_bank_fits
from image_tools.tryon.samples import Garment
from image_tools.tryon.training import (
    draw_latents,
    draw_rows,
    train_modules,
    write_modules,
)
from renderers.errors import ShapeError

__all__ = [
    "CompositionLoss",
    "DecompositionLoss",
    "DressedBatch",
    "DressedBatches",
    "ProductBatch",
    "ProductBatches",
    "train_composition",
    "train_decomposition",
]


@dataclass(frozen=True)
class ProductBatch:
    """Product pictures, and the same garments cut out of photographs."""

    products: Float[Tensor, "b h w 3"]
    references: Float[Tensor, "b h w 3"]
    """Grey around, as of ``cut_out``."""
    categories: tuple[GarmentCategory, ...]

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = (len(self.products), len(self.references), len(self.categories))
        if len(set(sizes)) > 1:
            raise ShapeError(
                f"A batch has {sizes[0]} products, {sizes[1]} references and {sizes[2]} "
                "categories. Give one of each for every pair."
            )


@dataclass(frozen=True)
class DressedBatch:
    """People and the garments that they wear, as product pictures."""

    people: Float[Tensor, "b h w 3"]
    captions: tuple[str, ...]
    garments: tuple[Garment, ...]
    """As many for every person."""

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together."""
        sizes = {len(self.people), len(self.captions), *(len(g) for g in self.garments)}
        if len(sizes) > 1 or not self.garments:
            raise ShapeError(
                f"A batch has {len(self.people)} people, {len(self.captions)} captions and "
                f"{len(self.garments)} times {[len(g) for g in self.garments]} garments. Give each "
                "person a caption and as many garments."
            )


ProductBatches = Callable[[int, torch.Generator], ProductBatch]
"""Batch number k; everything random in it comes from the generator."""
DressedBatches = Callable[[int, torch.Generator], DressedBatch]
"""Batch number k; everything random in it comes from the generator."""


class DecompositionLoss:
    """Loss of batch number k for the decomposition network."""

    def __init__(
        self, denoiser: TryOnDenoiser, batches: ProductBatches, config: DecompositionTrainingConfig
    ) -> None:
        """Train what the denoiser predicts with."""
        self.denoiser, self.batches, self.config = denoiser, batches, config

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        denoiser, pairs = self.denoiser, self.batches(batch, generator)
        is_dropped = draw_rows(len(pairs.categories), self.config.dropout, generator)
        with torch.no_grad():
            latents = draw_latents(denoiser, pairs.products, generator)
            shown = denoiser.encode_images(pairs.references.to(denoiser.device))
            text = encode_text(denoiser, [product_prompt(one) for one in pairs.categories])
        keeps = (~is_dropped).to(shown).reshape(-1, 1, 1, 1)
        bank = silent_features(denoiser, shown * keeps)
        noisy = draw_noisy(denoiser, latents, generator)
        condition = Condition(text, additions=(BankAddition(bank),))
        return denoising_errors(denoiser, noisy, condition).mean()


class CompositionLoss:
    """Loss of batch number k for an encoder beside a frozen generator."""

    def __init__(
        self,
        prior: DiffusionPrior,
        encoder: nn.Module,
        batches: DressedBatches,
        config: CompositionTrainingConfig,
    ) -> None:
        """Put the encoder beside the generator.

        Raises:
            UnsupportedModel: if it is of another design.
        """
        check_bank_fits(encoder, prior.unet)
        self.prior, self.encoder, self.batches, self.config = prior, encoder, batches, config

    def __call__(self, batch: int, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean error of the batch."""
        prior, sample = self.prior, self.batches(batch, generator)
        rows = len(sample.captions)
        is_bare = draw_rows(rows, self.config.dropout, generator)
        is_silent = draw_rows(rows, self.config.text_dropout, generator)
        prompts = [
            "" if silent else caption
            for silent, caption in zip(is_silent.tolist(), sample.captions, strict=True)
        ]
        with torch.no_grad():
            latents = draw_latents(prior, sample.people, generator)
            text = encode_text(prior, prompts)
        bank = self._bank(sample.garments, is_bare)
        noisy = draw_noisy(prior, latents, generator)
        condition = Condition(text, additions=(BankAddition(bank),))
        return denoising_errors(prior, noisy, condition).mean()

    def _bank(self, garments: tuple[Garment, ...], is_bare: Tensor) -> ReferenceBank:
        """Features of all garments with gradients; zeros for those who wear none."""
        prior, banks = self.prior, []
        for garment in garments:
            with torch.no_grad():
                pictures = fitted(garment.images, prior.image_hw).to(prior.device)
                latents = prior.encode_images(pictures)
                words = [garment_prompt(category) for category in garment.categories]
                text = encode_text(prior, words)
            banks.append(clean_features(prior, self.encoder, latents, text))
        worn = (~is_bare).to(prior.device).reshape(-1, 1, 1)
        return banks[0].beside(banks[1:]).scaled(worn)


def train_decomposition(
    denoiser: TryOnDenoiser,
    batches: ProductBatches,
    config: DecompositionTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train a decomposition network; calling again with the same folder goes on.

    Args:
        denoiser: whose denoiser, a copy of a text-to-image model's, is trained in place; float32.
        batches: pairs of products and cut-outs.
        config: settings.
        folder: the training's own. The result is its folder ``decomp``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        StudioError: the folder holds another training, or the denoiser is not float32.
    """
    return train_modules(
        [denoiser.unet],
        DecompositionLoss(denoiser, batches, config),
        config,
        folder,
        write=partial(write_modules, {"decomp": denoiser.unet}),
        prior=denoiser,
        identity=identity,
        recomputed=[denoiser.unet],
        hooks=hooks,
    )


def train_composition(
    prior: DiffusionPrior,
    encoder: nn.Module,
    batches: DressedBatches,
    config: CompositionTrainingConfig,
    folder: Path,
    *,
    identity: str,
    hooks: LoopHooks | None = None,
) -> TrainingResult:
    """Train an encoder of garments; calling again with the same folder goes on.

    Args:
        prior: the generator, left as it is found.
        encoder: a copy of its denoiser, or one to train further; float32.
        batches: people with the garments that they wear.
        config: settings.
        folder: the training's own. The result is its folder ``comp``.
        identity: what the batches are; a resumed training must say the same.
        hooks: progress, samples, a stop request.

    Raises:
        UnsupportedModel: the encoder is of another design than the generator.
        StudioError: the folder holds another training, or the encoder is not float32.
    """
    return train_modules(
        [encoder],
        CompositionLoss(prior, encoder, batches, config),
        config,
        folder,
        write=partial(write_modules, {"comp": encoder}),
        prior=prior,
        identity=identity,
        recomputed=[encoder, prior.unet],
        hooks=hooks,
    )
