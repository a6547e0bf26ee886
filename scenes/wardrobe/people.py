"""Random people: proportions, pose, looks, light and backdrop, drawn by explicit generators.

A person is a row of numbers; ``scenes/wardrobe/body.py`` makes a body of it. Who is held out of
training is told by skin and pose alone, so that both sides of the split wear the same clothes.

    people = draw_people(16, generator)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["HAIR_STYLES", "People", "cat_people", "draw_people", "is_held_out_person"]

HAIR_STYLES = ("short", "bob", "long", "bun")
# Display-referred colours between which skin and hair are drawn.
SKINS = ((0.98, 0.85, 0.76), (0.91, 0.71, 0.57), (0.72, 0.50, 0.36), (0.42, 0.27, 0.19))
HAIRS = (
    (0.10, 0.08, 0.08),
    (0.27, 0.16, 0.10),
    (0.46, 0.30, 0.17),
    (0.83, 0.68, 0.42),
    (0.52, 0.20, 0.11),
)
IRISES = ((0.25, 0.15, 0.10), (0.22, 0.40, 0.55), (0.28, 0.42, 0.26))
HELD_OUT_SKIN = (0.62, 0.80)
HELD_OUT_SWING_DEG = 22.0


@dataclass(frozen=True)
class People:
    """``b`` people; angles in degrees, sides in the order right, left (the person's own)."""

    stature: Float[Tensor, " b"]
    """Factor of all lengths."""
    shoulders: Float[Tensor, " b"]
    hips: Float[Tensor, " b"]
    girth: Float[Tensor, " b"]
    """Factors of shoulder width, hip width and thickness."""
    bust: Float[Tensor, " b"]
    """0 for none."""
    turn: Float[Tensor, " b"]
    """Of the whole body, towards the person's left."""
    lean: Float[Tensor, " b"]
    """Of the upper body, to the person's left."""
    head: Float[Tensor, "b 2"]
    """Turn to the left and tilt to the left."""
    arm_out: Float[Tensor, "b 2"]
    """Of the upper arm away from the body."""
    arm_swing: Float[Tensor, "b 2"]
    """Of the upper arm to the front."""
    elbow: Float[Tensor, "b 2"]
    """0 for a straight arm."""
    elbow_side: Float[Tensor, "b 2"]
    """Where the forearm bends to: 0 the front, 90 the body's middle."""
    leg_out: Float[Tensor, "b 2"]
    tone: Float[Tensor, " b"]
    """Of the skin, 0 light to 1 dark."""
    skin: Float[Tensor, "b 3"]
    hair: Float[Tensor, "b 3"]
    hair_style: Int[Tensor, " b"]
    """Index into HAIR_STYLES."""
    iris: Float[Tensor, "b 3"]
    eye_size: Float[Tensor, " b"]
    mouth: Float[Tensor, " b"]
    """Width factor."""
    shoes: Float[Tensor, "b 3"]
    light: Float[Tensor, "b 3"]
    """Unit direction towards the light."""
    backdrop: Float[Tensor, "b 2 3"]
    """Colours at the top and at the bottom of the image."""

    def __len__(self) -> int:
        """Number of people."""
        return len(self.stature)

    def select(self, rows: Int[Tensor, " n"]) -> People:
        """Some of them, in the order given; a row may repeat."""
        return People(**{f.name: getattr(self, f.name)[rows] for f in fields(People)})

    def to(self, device: torch.device) -> People:
        """The same people on another device."""
        return People(**{f.name: getattr(self, f.name).to(device) for f in fields(People)})


def is_held_out_person(people: People) -> Bool[Tensor, " b"]:
    """Whether training never sees the person: one stretch of skin tones, or an arm far in front."""
    low, high = HELD_OUT_SKIN
    unseen_skin = (people.tone >= low) & (people.tone < high)
    return unseen_skin | (people.arm_swing > HELD_OUT_SWING_DEG).any(dim=1)


def draw_people(count: int, generator: torch.Generator, *, held_out: bool | None = None) -> People:
    """Draw ``count`` people.

    Args:
        count: how many.
        generator: source of everything random.
        held_out: only those whom training never sees, only those whom it does, or any.
    """
    kept: list[People] = []
    found = 0
    while found < count:
        drawn = _draw(count, generator)
        if held_out is not None:
            drawn = drawn.select((is_held_out_person(drawn) == held_out).nonzero()[:, 0])
        kept.append(drawn)
        found += len(drawn)
    return cat_people(kept).select(torch.arange(count))


def cat_people(parts: Sequence[People]) -> People:
    """All people of several groups, in order."""
    return People(
        **{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(People)}
    )


def _draw(b: int, generator: torch.Generator) -> People:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(b, *shape, generator=generator)

    def either(first: Tensor, second: Tensor, share: float) -> Tensor:
        """``second`` in ``share`` of the draws."""
        return torch.where(torch.rand(first.shape, generator=generator) < share, second, first)

    tone = uniform(0.0, 1.0)
    azimuth, height = torch.deg2rad(uniform(-60.0, 60.0)), uniform(0.25, 0.8)
    flat = (1.0 - height.square()).sqrt()
    grey = uniform(0.72, 0.97, 1)
    top = (grey + uniform(-0.05, 0.05, 3)).clamp(0.0, 1.0)
    top = torch.where(uniform(0.0, 1.0, 1) < 0.2, uniform(0.35, 0.9, 3), top)
    return People(
        stature=uniform(0.96, 1.04),
        shoulders=uniform(0.92, 1.08),
        hips=uniform(0.93, 1.08),
        girth=uniform(0.9, 1.12),
        bust=either(torch.zeros(b), uniform(0.6, 1.0), 0.7),
        turn=uniform(-24.0, 24.0),
        lean=uniform(-5.0, 5.0),
        head=torch.stack([uniform(-16.0, 16.0), uniform(-8.0, 8.0)], dim=1),
        arm_out=uniform(8.0, 34.0, 2),
        arm_swing=uniform(-14.0, 30.0, 2),
        elbow=either(uniform(5.0, 30.0, 2), uniform(40.0, 105.0, 2), 0.4),
        elbow_side=uniform(10.0, 95.0, 2),
        leg_out=uniform(1.0, 8.0, 2),
        tone=tone,
        skin=_between(SKINS, tone),
        hair=_one_of(HAIRS, b, generator) + uniform(-0.04, 0.04, 1),
        hair_style=torch.randint(len(HAIR_STYLES), (b,), generator=generator),
        iris=_one_of(IRISES, b, generator),
        eye_size=uniform(0.85, 1.2),
        mouth=uniform(0.8, 1.25),
        shoes=either(uniform(0.05, 0.3, 3), uniform(0.2, 0.95, 3), 0.5),
        light=torch.stack([flat * azimuth.cos(), flat * azimuth.sin(), height], dim=1),
        backdrop=torch.stack([top, (top - uniform(0.02, 0.14, 1)).clamp(min=0.0)], dim=1),
    )


def _between(colors: tuple[tuple[float, ...], ...], share: Tensor) -> Tensor:
    """Along a polyline of colours, 0 its start and 1 its end."""
    table = torch.tensor(colors)
    place = share * (len(colors) - 1)
    low = place.long().clamp(max=len(colors) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[:, None])


def _one_of(colors: tuple[tuple[float, ...], ...], b: int, generator: torch.Generator) -> Tensor:
    return torch.tensor(colors)[torch.randint(len(colors), (b,), generator=generator)]
