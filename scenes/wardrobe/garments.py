"""Random garments: what they are, their colours and patterns, and how they lie flat.

A garment is made of panels (a torso, sleeves, legs, a skirt). Each panel is a strip of cloth along
an axis in the flat plane: ``(a, u)``, metres along it and the share -1..1 across, is the flat point
``origin + a dir + width(a) u perp``. What is printed is a function of the flat point alone, so the
product view and the worn garment are the same cloth, and a pixel of a person has an exact place in
the product view.

    garments = draw_garments(16, generator, category=UPPER)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "CATEGORIES",
    "DRESS",
    "LOWER",
    "NECKLINES",
    "PATTERNS",
    "SLEEVES",
    "UPPER",
    "Garments",
    "cat_garments",
    "draw_garments",
    "is_held_out_garment",
    "printed_color",
]

CATEGORIES = ("upper", "lower", "dress")
UPPER, LOWER, DRESS = range(3)
SLEEVES = ("sleeveless", "short", "long")
NECKLINES = ("round", "v", "boat")
PATTERNS = ("solid", "horizontal stripes", "vertical stripes", "checks", "dots")
FREQUENCIES = (4, 6, 8)
LENGTHS = (0.45, 0.75, 1.0)
STRIPE_SPAN = 0.46
"""Metres of cloth that hold ``frequency`` periods of a pattern."""
LOGO_SIZE, LOGO_HEIGHT = 0.11, 0.31
HELD_OUT_HUES = (0.55, 0.65)
HELD_OUT_LOGOS = 10


@dataclass(frozen=True)
class Garments:
    """``b`` garments."""

    category: Int[Tensor, " b"]
    sleeve: Int[Tensor, " b"]
    """Index into SLEEVES; of lower garments 0."""
    length: Float[Tensor, " b"]
    """0.45: cropped, mini; 0.75: to the hips, to the knees; 1: over the hips, to the ankles."""
    skirt: Bool[Tensor, " b"]
    """Lower garments: a skirt, not trousers."""
    neckline: Int[Tensor, " b"]
    collar: Bool[Tensor, " b"]
    """Edges of neckline and sleeves have the third colour."""
    loose: Float[Tensor, " b"]
    """Distance from the body in metres."""
    pattern: Int[Tensor, " b"]
    frequency: Int[Tensor, " b"]
    colors: Float[Tensor, "b 3 3"]
    hue: Float[Tensor, " b"]
    """Of the first colour."""
    logo: Int[Tensor, " b"]
    """15 bits of a mirrored 5x5 glyph; 0 for none."""
    folds: Float[Tensor, "b 4"]
    """Phases of the worn cloth's folds."""

    def __len__(self) -> int:
        """Number of garments."""
        return len(self.category)

    def select(self, rows: Int[Tensor, " n"]) -> Garments:
        """Some of them, in the order given; a row may repeat."""
        return Garments(**{f.name: getattr(self, f.name)[rows] for f in fields(Garments)})

    def to(self, device: torch.device) -> Garments:
        """The same garments on another device."""
        return Garments(**{f.name: getattr(self, f.name).to(device) for f in fields(Garments)})


def is_held_out_garment(garments: Garments) -> Bool[Tensor, " b"]:
    """Whether training never sees the garment: by pattern and sleeve, hue, or logo."""
    pattern, sleeve = garments.pattern, garments.sleeve
    long_checks = (pattern == PATTERNS.index("checks")) & (sleeve == 2)
    bare_dots = (pattern == PATTERNS.index("dots")) & (sleeve == 0) & (garments.category != LOWER)
    unseen_hue = (garments.hue >= HELD_OUT_HUES[0]) & (garments.hue < HELD_OUT_HUES[1])
    unseen_logo = (garments.logo > 0) & (garments.logo % HELD_OUT_LOGOS == 0)
    return long_checks | bare_dots | unseen_hue | unseen_logo


def draw_garments(
    count: int,
    generator: torch.Generator,
    *,
    category: int | None = None,
    held_out: bool | None = None,
) -> Garments:
    """Draw ``count`` garments.

    Args:
        count: how many.
        generator: source of everything random.
        category: UPPER, LOWER or DRESS; any where None.
        held_out: only what training never sees, only what it does, or any.
    """
    kept: list[Garments] = []
    found = 0
    while found < count:
        drawn = _draw(count, generator)
        if category is not None:
            drawn = replace(drawn, category=torch.full_like(drawn.category, category))
        drawn = _consistent(drawn)
        if held_out is not None:
            drawn = drawn.select((is_held_out_garment(drawn) == held_out).nonzero()[:, 0])
        kept.append(drawn)
        found += len(drawn)
    return cat_garments(kept).select(torch.arange(count))


def cat_garments(parts: Sequence[Garments]) -> Garments:
    """All garments of several groups, in order."""
    every = {f.name: torch.cat([getattr(g, f.name) for g in parts]) for f in fields(Garments)}
    return Garments(**every)


def _draw(b: int, generator: torch.Generator) -> Garments:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=generator)

    def whole(count: int) -> Tensor:
        return torch.randint(count, (b,), generator=generator)

    hue = uniform(0.0, 1.0)
    value, second = uniform(0.45, 0.97), uniform(0.4, 0.97)
    first = _rgb(hue, uniform(0.45, 0.95), value)
    pale = _rgb(uniform(0.0, 1.0), uniform(0.0, 0.12), uniform(0.88, 0.98))
    vivid = _rgb((hue + uniform(0.25, 0.75)) % 1.0, uniform(0.3, 0.9), second)
    other = torch.where((uniform(0.0, 1.0) < 0.5)[:, None], pale, vivid)
    third = torch.where((value < 0.7)[:, None], pale, _rgb(hue, uniform(0.5, 0.9), value * 0.35))
    has_logo = uniform(0.0, 1.0) < 0.4
    return Garments(
        category=whole(len(CATEGORIES)),
        sleeve=whole(len(SLEEVES)),
        length=torch.tensor(LENGTHS)[whole(len(LENGTHS))],
        skirt=uniform(0.0, 1.0) < 0.4,
        neckline=whole(len(NECKLINES)),
        collar=uniform(0.0, 1.0) < 0.5,
        loose=uniform(0.010, 0.026),
        pattern=whole(len(PATTERNS)),
        frequency=torch.tensor(FREQUENCIES)[whole(len(FREQUENCIES))],
        colors=torch.stack([first, other, third], dim=1),
        hue=hue,
        logo=torch.where(has_logo, 1 + whole(2**15 - 1), 0),
        folds=uniform(0.0, 6.28, 4),
    )


def _consistent(garments: Garments) -> Garments:
    """Without the features that a category does not have."""
    is_lower, is_dress = garments.category == LOWER, garments.category == DRESS
    return replace(
        garments,
        sleeve=torch.where(is_lower, 0, garments.sleeve),
        skirt=torch.where(is_lower, garments.skirt, is_dress),
        collar=garments.collar & ~is_lower,
        logo=torch.where(is_lower, 0, garments.logo),
    )


def printed_color(
    garments: Garments,
    row: Int[Tensor, " n"],
    points: Float[Tensor, "n 2"],
    is_front: Bool[Tensor, " n"],
) -> Float[Tensor, "n 3"]:
    """Colour of the cloth at flat points.

    Args:
        garments: all garments.
        row: which one each point is of.
        points: flat, metres; x to the person's left, y up from the middle of the hips.
        is_front: logos are on the front alone.
    """
    period = STRIPE_SPAN / garments.frequency[row]
    # Half a period off, so that a stripe and no edge of one runs down the middle.
    across = (points[:, 0] / period + 0.25) % 1.0 < 0.5
    along = (points[:, 1] / period) % 1.0 < 0.5
    cell = (points / period[:, None]) % 1.0 - 0.5
    dots = cell.square().sum(-1) < 0.3**2
    pattern = garments.pattern[row]
    is_second = torch.stack([torch.zeros_like(dots), along, across, across ^ along, dots])
    is_second = is_second.gather(0, pattern[None])[0]
    color = garments.colors[row, is_second.long()]
    shows = is_front & (garments.logo[row] > 0)
    shows = shows & _glyph(garments.logo[row], points)
    return torch.where(shows[:, None], garments.colors[row, 2], color)


def _glyph(code: Tensor, points: Tensor) -> Bool[Tensor, " n"]:
    """Where the mirrored 5x5 glyph of a code is set."""
    corner = torch.tensor([0.0, LOGO_HEIGHT], device=points.device)
    cell = ((points - corner) / LOGO_SIZE * 5.0 + 2.5).floor().long()
    inside = ((cell >= 0) & (cell < 5)).all(dim=-1)
    column = torch.minimum(cell[:, 0], 4 - cell[:, 0]).clamp(0, 2)
    bit = column * 5 + cell[:, 1].clamp(0, 4)
    return inside & ((code >> bit) & 1).bool()


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Float[Tensor, "b 3"]:
    """Hue, saturation and value, all in 0..1, as RGB."""
    offsets = torch.tensor([0.0, 2.0, 4.0])
    ramp = ((hue[:, None] * 6.0 - offsets + 3.0) % 6.0 - 3.0).abs()
    pure = (2.0 - ramp).clamp(0.0, 1.0)
    return value[:, None] * (1.0 - saturation[:, None] * (1.0 - pure))
