"""BootComp's batches (arXiv 2412.16978) from samples of any data set, or of a closed world.

    composition      people, their captions, and the product pictures of what they wear
    decomposition    product pictures, and the same garments cut out of the people's pictures

BootComp tells trousers from skirts. Where a sample only says that a garment is a lower one, the
labels of its pixels tell.

    train_composition(prior, encoder, dressed_batches(batches), config, folder, identity="VITON-HD")
    train_decomposition(denoiser, product_batches(batches), config, folder, identity="VITON-HD")
"""

from __future__ import annotations

from dataclasses import replace

import torch

from image_tools.tryon.bootcomp_training import (
    DressedBatch,
    DressedBatches,
    ProductBatch,
    ProductBatches,
)
from image_tools.tryon.garment_configs import GarmentCategory
from image_tools.tryon.pictures import cut_out
from image_tools.tryon.samples import Garment, TryOnBatches, TryOnSample

__all__ = ["dressed_batches", "product_batches", "told_apart"]

MODEL = "BootComp's training"
SKIRT, PANTS = 5, 6  # of ATR's labels


def dressed_batches(batches: TryOnBatches) -> DressedBatches:
    """What the encoder of garments is trained with; samples without words have empty captions.

    Args:
        batches: people who wear their garments.
    """

    def dressed(number: int, generator: torch.Generator) -> DressedBatch:
        sample = batches(number, generator)
        garments = tuple(
            replace(one.sized(sample.size), categories=told_apart(sample, one))
            for one in sample.garments
        )
        return DressedBatch(sample.person, sample.captions or ("",) * len(sample), garments)

    return dressed


def product_batches(batches: TryOnBatches) -> ProductBatches:
    """What the decomposition network is trained with.

    Args:
        batches: people who wear one garment each, with ``worn_mask``.
    """

    def products(number: int, generator: torch.Generator) -> ProductBatch:
        sample = batches(number, generator)
        garment = sample.only_garment(model=MODEL)
        worn = sample.need("worn_mask", model=MODEL)
        return ProductBatch(
            garment.sized(sample.size).images,
            cut_out(sample.person, worn, sample.size),
            told_apart(sample, garment),
        )

    return products


def told_apart(sample: TryOnSample, garment: Garment) -> tuple[GarmentCategory, ...]:
    """Categories of a garment of each row, in which lower ones are pants or skirts.

    Raises:
        StudioError: there are lower ones, and the sample has no labels.
    """
    found = list(garment.categories)
    for row, category in enumerate(found):
        if category == "lower":
            labels = sample.need("parse", model=MODEL)[row]
            is_skirt = int((labels == SKIRT).sum()) > int((labels == PANTS).sum())
            found[row] = "skirt" if is_skirt else "pants"
    return tuple(found)
