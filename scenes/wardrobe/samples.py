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

from scenes.wardrobe.agnostic import painted_anew
from scenes.wardrobe.cameras import frame_people
from scenes.wardrobe.captions import describe_garments
from scenes.wardrobe.flat import canvas_of, flat_views
from scenes.wardrobe.garments import LOWER, UPPER, Garments, draw_garments
from scenes.wardrobe.people import People, draw_people
from scenes.wardrobe.render import Buffers, Scene, render_buffers
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
    """Draw the people in the second garment, too."""

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
    product_other: Float[Tensor, "b h w 3"]
    product_other_mask: Float[Tensor, "b h w"]
    worn_other: Buffers | None
    """The same people in the second garment."""
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
        return painted_anew(self.worn, self.wardrobe.target)

    @property
    def correspondence(self) -> Float[Tensor, "b h w 2"]:
        """Where in the product view each pixel of the garment's front comes from.

        In ``grid_sample``'s coordinates with align_corners False; nan elsewhere.
        """
        return self._places(self.worn, self.wardrobe.garment)

    @property
    def correspondence_other(self) -> Float[Tensor, "b h w 2"]:
        """The same of the second garment."""
        return self._places(self.worn_other, self.wardrobe.other)

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
    """The numbers of pairs; each has a generator of its own."""
    rows = [_draw_one(config, split, number) for number in range(first, first + count)]
    people = _stack(People, [row.people for row in rows])
    tops, bottoms = (
        _stack(Garments, [getattr(row.outfit, name) for row in rows]) for name in ("top", "bottom")
    )
    target = torch.cat([row.target for row in rows])
    other = _stack(Garments, [row.other for row in rows])
    return Wardrobe(people, Outfit(tops, bottoms), target, other)


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

    garment, other = wardrobe.garment, wardrobe.other
    views = [flat_views(one, height=height, width=width) for one in (garment, other)]
    return Pairs(
        wardrobe,
        worn(wardrobe.outfit),
        *views[0],
        *views[1],
        worn(wardrobe.changed()) if config.other else None,
        describe_garments(garment),
        describe_garments(other),
    )


def _draw_one(config: PairConfig, split: Split, number: int) -> Wardrobe:
    digest = hashlib.sha256(f"wardrobe/{split}/{number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    category = config.category
    drawn = float(torch.rand((), generator=generator))
    if category is None:
        category = 0 if drawn < SHARES[0] else 1 if drawn < SHARES[0] + SHARES[1] else 2
    held_out = split in ("garments", "both")
    people = draw_people(1, generator, held_out=split in ("people", "both"))
    tried, other = (
        draw_garments(1, generator, category=category, held_out=held_out) for _ in range(2)
    )
    # What is not tried on never tells of the split.
    top = draw_garments(1, generator, category=UPPER, held_out=False)
    bottom = draw_garments(1, generator, category=LOWER, held_out=False)
    outfit = Outfit(top, tried) if category == LOWER else Outfit(tried, bottom)
    return Wardrobe(people, outfit, torch.tensor([category]), other)


def _stack(kind: type, rows: list) -> People | Garments:
    names = kind.__dataclass_fields__
    return kind(**{name: torch.cat([getattr(row, name) for row in rows]) for name in names})


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
