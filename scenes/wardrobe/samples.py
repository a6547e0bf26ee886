"""Random pairs of people and garments, as training and evaluation data with exact ground truth.

A pair is a person who wears a garment, its product view, and a second garment of the same category
that the person shall wear, with the picture of them wearing it: unpaired try-on has ground truth
here. Sample k of a split depends on the split and k alone, so that a data set is a few numbers.

    pairs = draw_pairs(PairConfig(), split="train", first=0, count=16)
    pairs.worn.rgb, pairs.product, pairs.mask, pairs.worn_other.rgb
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenes.wardrobe.agnostic import largest_outfit, painted_anew
from scenes.wardrobe.cameras import frame_people
from scenes.wardrobe.captions import describe_garments
from scenes.wardrobe.flat import canvas_of, flat_views
from scenes.wardrobe.garments import (
    CATEGORIES,
    LOWER,
    UPPER,
    Garments,
    cat_garments,
    draw_garments,
)
from scenes.wardrobe.people import People, cat_people, draw_people
from scenes.wardrobe.render import Buffers, Scene, cloth_slots, render_buffers
from scenes.wardrobe.worn import Outfit

__all__ = [
    "PairConfig",
    "Pairs",
    "Split",
    "Wardrobe",
    "draw_pairs",
    "draw_wardrobe",
    "render_pairs",
]

Split = Literal["train", "garments", "people", "both"]
"""Seen people in seen garments; held-out garments; held-out people; both held out."""
SHARES = (0.6, 0.2, 0.2)
"""Of upper and lower garments and dresses."""
BLOCK = 64
"""Pairs that are drawn together."""


@dataclass(frozen=True)
class PairConfig:
    """How pairs are drawn and drawn up."""

    height: int = 64
    """Rows of the pictures; they are three quarters as wide."""
    supersample: int = 2
    """Samples along each axis of a pixel."""
    category: int | None = None
    """UPPER, LOWER or DRESS; all of them where None."""
    azimuth_deg: float = 0.0
    """From where people are seen."""
    other: bool = True
    """Draw the second garment and the people in it, too."""

    @property
    def width(self) -> int:
        """Columns of the pictures."""
        return self.height * 3 // 4


@dataclass(frozen=True)
class Wardrobe:
    """Who wears what: the numbers that a batch of pairs is made of."""

    people: People
    outfit: Outfit
    target: Int[Tensor, " b"]
    """Category of the garment that is tried on: the outfit's top, or its bottom for LOWER."""
    other: Garments
    """The second garment."""

    @property
    def garment(self) -> Garments:
        """The garment that is worn and tried on."""
        return _chosen(self.target, self.outfit)

    def select(self, rows: Int[Tensor, " n"]) -> Wardrobe:
        """Some of the pairs, in the order given."""
        people, outfit = self.people.select(rows), self.outfit.select(rows)
        return Wardrobe(people, outfit, self.target[rows], self.other.select(rows))

    def changed(self) -> Outfit:
        """The outfit with the second garment in the place of the first."""
        is_lower = self.target == LOWER
        rows = torch.arange(len(is_lower), device=is_lower.device)
        b = len(rows)
        both = Outfit(self.outfit.top, self.other).garments
        top = both.select(torch.where(is_lower, rows, rows + b))
        both = Outfit(self.other, self.outfit.bottom).garments
        return Outfit(top, both.select(torch.where(is_lower, rows, rows + b)))


@dataclass(frozen=True)
class Pairs:
    """``b`` pairs with everything that is known of them."""

    wardrobe: Wardrobe
    worn: Buffers
    """The people in the garment."""
    product: Float[Tensor, "b h w 3"]
    product_mask: Float[Tensor, "b h w"]
    product_other: Float[Tensor, "b h w 3"] | None
    product_other_mask: Float[Tensor, "b h w"] | None
    worn_other: Buffers | None
    """The second garment, and the same people in it, if they were asked for."""
    largest: Int[Tensor, "b h w"]
    """Which garment would be seen in the largest outfit."""
    captions: tuple[str, ...]
    """Of the garment."""
    captions_other: tuple[str, ...]

    @property
    def worn_mask(self) -> Bool[Tensor, "b h w"]:
        """Where the picture shows the garment."""
        return _shows(self.worn, self.wardrobe.target)

    @property
    def mask(self) -> Bool[Tensor, "b h w"]:
        """What is painted anew, the same for any garment of the category."""
        return painted_anew(self.worn, self.wardrobe.target, self.largest)

    @property
    def correspondence(self) -> Float[Tensor, "b h w 2"]:
        """Where in the product view each pixel of the garment's front comes from.

        In ``grid_sample``'s coordinates with align_corners False; nan elsewhere.
        """
        return self._places(self.worn, self.wardrobe.garment)

    def _places(self, buffers: Buffers, garments: Garments) -> Tensor:
        shown = _shows(buffers, self.wardrobe.target) & buffers.is_front
        row = torch.arange(len(shown), device=shown.device)[:, None, None].expand_as(shown)
        places = canvas_of(garments).to_grid(row.flatten(), buffers.flat.flatten(0, 2))
        return torch.where(shown[..., None], places.unflatten(0, shown.shape), torch.nan)


def draw_pairs(
    config: PairConfig,
    *,
    split: Split,
    first: int,
    count: int,
    device: torch.device | None = None,
) -> Pairs:
    """Pairs ``first`` to ``first + count - 1`` of a split.

    Args:
        config: sizes and what is drawn.
        split: which people and garments.
        first: number of the first pair.
        count: how many.
        device: where they are rendered; the CPU by default. Numbers are drawn on the CPU.
    """
    wardrobe = draw_wardrobe(config, split=split, first=first, count=count)
    if device is not None:
        wardrobe = _moved(wardrobe, device)
    return render_pairs(config, wardrobe)


def draw_wardrobe(config: PairConfig, *, split: Split, first: int, count: int) -> Wardrobe:
    """The numbers of pairs."""
    blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
    drawn = _stack([_draw_block(config, split, block) for block in blocks])
    rows = torch.arange(count) + first - blocks[0] * BLOCK
    return drawn.select(rows)


def render_pairs(config: PairConfig, wardrobe: Wardrobe) -> Pairs:
    """Draw pairs up."""
    people, height, width = wardrobe.people, config.height, config.width
    cameras = frame_people(
        people,
        torch.full_like(people.stature, config.azimuth_deg),
        whole=wardrobe.target != UPPER,
        height=height,
        width=width,
    )

    def worn(outfit: Outfit) -> Buffers:
        scene = Scene.build(people, outfit)
        return render_buffers(scene, cameras, supersample=config.supersample)

    largest = largest_outfit(wardrobe.outfit, wardrobe.target)
    garment, other = wardrobe.garment, wardrobe.other
    views = [
        flat_views(one, height=height, width=width) if is_wanted else (None, None)
        for one, is_wanted in ((garment, True), (other, config.other))
    ]
    return Pairs(
        wardrobe,
        worn(wardrobe.outfit),
        *views[0],
        *views[1],
        worn(wardrobe.changed()) if config.other else None,
        cloth_slots(Scene.build(people, largest), cameras),
        describe_garments(garment),
        describe_garments(other),
    )


def _draw_block(config: PairConfig, split: Split, block: int) -> Wardrobe:
    """Pairs are drawn in blocks of fixed size: one by one takes longer than their pictures."""
    digest = hashlib.sha256(f"wardrobe/{split}/{block}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    drawn = torch.rand(BLOCK, generator=generator)
    bounds = torch.tensor(SHARES).cumsum(0)[:-1]
    target = torch.bucketize(drawn, bounds, right=True)
    if config.category is not None:
        target = torch.full_like(target, config.category)
    people = draw_people(BLOCK, generator, held_out=split in ("people", "both"))
    rows = torch.arange(BLOCK)

    def garments(category: Int[Tensor, " b"], *, held_out: bool) -> Garments:
        every = [
            draw_garments(BLOCK, generator, category=k, held_out=held_out)
            for k in range(len(CATEGORIES))
        ]
        return cat_garments(every).select(category * BLOCK + rows)

    held_out, is_lower = split in ("garments", "both"), target == LOWER
    tried, other = (garments(target, held_out=held_out) for _ in range(2))
    # What is not tried on never tells of the split.
    rest = garments(torch.where(is_lower, UPPER, LOWER), held_out=False)
    both = cat_garments([tried, rest])
    outfit = Outfit(
        both.select(torch.where(is_lower, rows + BLOCK, rows)),
        both.select(torch.where(is_lower, rows, rows + BLOCK)),
    )
    return Wardrobe(people, outfit, target, other)


def _stack(parts: list[Wardrobe]) -> Wardrobe:
    if len(parts) == 1:
        return parts[0]
    tops, bottoms = (
        cat_garments([getattr(part.outfit, name) for part in parts]) for name in ("top", "bottom")
    )
    return Wardrobe(
        cat_people([part.people for part in parts]),
        Outfit(tops, bottoms),
        torch.cat([part.target for part in parts]),
        cat_garments([part.other for part in parts]),
    )


def _moved(wardrobe: Wardrobe, device: torch.device) -> Wardrobe:
    outfit = Outfit(wardrobe.outfit.top.to(device), wardrobe.outfit.bottom.to(device))
    return Wardrobe(
        wardrobe.people.to(device), outfit, wardrobe.target.to(device), wardrobe.other.to(device)
    )


def _chosen(target: Tensor, outfit: Outfit) -> Garments:
    rows = torch.arange(len(target), device=target.device)
    return outfit.garments.select(torch.where(target == LOWER, rows + len(rows), rows))


def _shows(buffers: Buffers, target: Tensor) -> Bool[Tensor, "b h w"]:
    slot = torch.where(target == LOWER, 2, 1)
    return buffers.cloth == slot[:, None, None]
