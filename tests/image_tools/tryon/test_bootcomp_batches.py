"""Samples as BootComp's trainers take them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from image_tools.tryon.bootcomp_batches import dressed_batches, product_batches, told_apart
from image_tools.tryon.samples import TryOnSample
from renderers.errors import StudioError
from tests.image_tools.tryon.people import tiny_sample

SIZE = (32, 16)


@pytest.fixture
def sample() -> TryOnSample:
    """A row in a top and one in a skirt, whose product picture is wider than high."""
    drawn = tiny_sample(size=SIZE)
    parse = torch.zeros(2, *SIZE, dtype=torch.long)
    parse[1, 16:, :10], parse[1, 16:, 10:] = 5, 6
    shirt = replace(
        drawn.garments[0], images=torch.rand(2, 8, 16, 3), categories=("upper", "lower")
    )
    return replace(drawn, garments=(shirt,), parse=parse, worn_mask=drawn.mask)


def batch(make, sample: TryOnSample):
    return make(lambda number, generator: sample)(0, torch.Generator())


def test_people_come_with_whole_products_and_bootcomps_words(sample) -> None:
    dressed = batch(dressed_batches, sample)
    assert torch.equal(dressed.people, sample.person)
    assert dressed.captions == sample.captions
    (garment,) = dressed.garments
    assert garment.categories == ("upper", "skirt")
    assert torch.equal(garment.images[:, 12:20], sample.garments[0].images)
    assert bool((garment.images[:, :12] == 1.0).all())
    assert batch(dressed_batches, replace(sample, captions=())).captions == ("", "")


def test_products_come_with_what_is_worn_of_them(sample) -> None:
    products = batch(product_batches, sample)
    assert products.products.shape == products.references.shape == (2, *SIZE, 3)
    assert products.categories == ("upper", "skirt")
    # The worn part is a box of 16 by 12 pixels, which fills the width of 16 pixels.
    assert bool((products.references[:, 0] == 0.5).all())
    middle = sample.person[:, 8:24, 4:].mean(dim=(1, 2))
    rows = products.references[:, 6:26].mean(dim=(1, 2))
    assert torch.allclose(rows, middle, atol=0.05)
    with pytest.raises(StudioError, match="BootComp's training needs the people's worn_mask"):
        batch(product_batches, replace(sample, worn_mask=None))


def test_lower_garments_are_told_apart_by_their_labels(sample) -> None:
    garment = sample.garments[0]
    fewer = torch.where(sample.parse == 5, 6, sample.parse)
    assert told_apart(replace(sample, parse=fewer), garment) == ("upper", "pants")
    with pytest.raises(StudioError, match="BootComp's training needs the people's parse"):
        told_apart(replace(sample, parse=None), garment)
    tops = replace(garment, categories=("upper", "dress"))
    assert told_apart(replace(sample, parse=None), tops) == ("upper", "dress")
