"""Garments on bodies and flat on a table: cones over limbs, and the panels that both share.

A worn garment is the body's own limbs, thicker and cut at hem, waist and cuff; a skirt is a cone of
its own. Each of its cones belongs to a panel (``scenes/wardrobe/garments.py``). A surface point
goes to the panel by the length along the limb and the angle around it, folded over at the side
seams; over the shoulders, where angles around the spine mean little, by its distance from the
middle.

    worn = dress(people, frame, Outfit(top, bottom))
    flat, is_front = worn.flat_points(cone, points)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenes.wardrobe.body import FOREARM, SHIN, SIDES, THIGH, UPPER_ARM, Frame, body_limbs
from scenes.wardrobe.cones import Cones, Limb, cat_cones, local_points
from scenes.wardrobe.garments import DRESS, NECKLINES, Garments, cat_garments
from scenes.wardrobe.people import People

__all__ = [
    "PANELS",
    "Layout",
    "Outfit",
    "Worn",
    "dress",
    "lay_out",
    "neck_distance",
    "shoulder_line",
]

PANELS = ("skirt", "right leg", "left leg", "right sleeve", "left sleeve", "torso")
"""From the lowest to the topmost of those that overlap when the garment lies flat."""
SKIRT, RIGHT_LEG, LEFT_LEG, RIGHT_SLEEVE, LEFT_SLEEVE, TORSO = range(6)
NECK_TOP, WAIST, WRIST_GAP = 0.475, 0.13, 0.012
SHOULDER_Y, SHOULDER_DROP = 0.165, 0.36
"""Lateral place of the shoulder joint, and the fall of the shoulder seam per metre."""
SHORT_SLEEVE, HIP_FLARE = 0.55, 1.7
TOP_HEMS = {0.45: 0.17, 0.75: 0.02, 1.0: -0.09}
SKIRT_HEMS = {0.45: -0.22, 0.75: -0.42, 1.0: -0.76}
LEG_ENDS = {0.45: 0.55 * THIGH, 0.75: THIGH + 0.12, 1.0: THIGH + 0.96 * SHIN}


@dataclass(frozen=True)
class Outfit:
    """What each person wears; with a dress, ``bottom`` is not worn."""

    top: Garments
    bottom: Garments

    @property
    def garments(self) -> Garments:
        """All tops, then all bottoms."""
        return cat_garments([self.top, self.bottom])

    def select(self, rows: Int[Tensor, " n"]) -> Outfit:
        """The outfits of some people."""
        return Outfit(self.top.select(rows), self.bottom.select(rows))


@dataclass(frozen=True)
class Layout:
    """Panels of garments in the flat plane, metres; ``[g, panels, ...]``."""

    origin: Float[Tensor, "g panels 2"]
    direction: Float[Tensor, "g panels 2"]
    width: Float[Tensor, "g panels 2"]
    """Half width at the origin, and its growth per metre."""
    extent: Float[Tensor, "g panels 2"]
    """First and last metre of cloth along the panel; first above last where there is none."""

    def point(self, row: Tensor, panel: Tensor, along: Tensor, across: Tensor) -> Tensor:
        """Flat points from metres along and across."""
        d = self.direction[row, panel]
        perp = torch.stack([d[:, 1], -d[:, 0]], dim=-1)
        return self.origin[row, panel] + along[:, None] * d + across[:, None] * perp

    def half_width(self, row: Tensor, panel: Tensor, along: Tensor) -> Tensor:
        """Half the panel's width at metres along it."""
        base, growth = self.width[row, panel].unbind(-1)
        return (base + growth * along).clamp(min=0.02)


def lay_out(garments: Garments) -> Layout:
    """How garments lie flat: sleeves hang, legs are together."""
    g, device = len(garments), garments.loose.device
    half = 0.185 + garments.loose
    origin = torch.zeros(g, len(PANELS), 2, device=device)
    direction = torch.tensor([0.0, 1.0], device=device).repeat(g, len(PANELS), 1)
    width = torch.zeros(g, len(PANELS), 2, device=device)
    extent = torch.tensor([1.0, 0.0], device=device).repeat(g, len(PANELS), 1)
    is_dress, is_lower = garments.category == DRESS, garments.category == 1
    has_legs = is_lower & ~garments.skirt
    hem = torch.where(is_dress, WAIST, _by_length(garments.length, TOP_HEMS))
    width[:, TORSO, 0] = half
    extent[~is_lower, TORSO] = torch.stack([hem, torch.full_like(hem, NECK_TOP)], 1)[~is_lower]
    low = torch.where(has_legs, -0.09, _by_length(garments.length, SKIRT_HEMS))
    flare = torch.where(has_legs, 0.12, 0.30)
    width[:, SKIRT] = torch.stack([half - 0.01 + flare * WAIST, -flare], dim=1)
    has_skirt = is_dress | is_lower
    extent[has_skirt, SKIRT] = torch.stack([low, torch.full_like(low, WAIST)], 1)[has_skirt]
    angle = torch.deg2rad(torch.where(garments.sleeve == 2, 74.0, 45.0))
    reach = _sleeve_reach(garments)
    for panel, sign in ((RIGHT_SLEEVE, -1.0), (LEFT_SLEEVE, 1.0)):
        origin[:, panel] = torch.stack([sign * (half - 0.035), torch.full_like(half, 0.41)], 1)
        direction[:, panel] = torch.stack([sign * angle.cos(), -angle.sin()], dim=1)
        width[:, panel] = torch.stack([0.062 + garments.loose, torch.full_like(half, -0.035)], 1)
        extent[:, panel] = torch.stack([torch.full_like(half, -0.01), reach], dim=1)
    for panel, sign in ((RIGHT_LEG, -1.0), (LEFT_LEG, 1.0)):
        lean = torch.tensor([sign * 0.07, -1.0], device=device)
        origin[:, panel, 0], origin[:, panel, 1] = sign * 0.103, 0.0
        direction[:, panel] = lean / lean.norm()
        width[:, panel] = torch.stack([0.09 + garments.loose, torch.full_like(half, -0.035)], 1)
        end = _by_length(garments.length, LEG_ENDS)
        extent[has_legs, panel] = torch.stack([torch.zeros_like(end), end], dim=1)[has_legs]
    return Layout(origin, direction, width, extent)


def _sleeve_reach(garments: Garments) -> Float[Tensor, " g"]:
    """Metres of arm under a sleeve; below the panel's start where there is none."""
    short, full = SHORT_SLEEVE * UPPER_ARM, UPPER_ARM + FOREARM - WRIST_GAP
    reach = torch.tensor([-1.0, short, full], device=garments.loose.device)[garments.sleeve]
    return torch.where(garments.category == 1, -1.0, reach)


def _by_length(length: Tensor, table: dict[float, float]) -> Tensor:
    keys = torch.tensor(list(table), device=length.device)
    values = torch.tensor(list(table.values()), device=length.device)
    return values[(length[:, None] - keys).abs().argmin(dim=1)]


def neck_distance(
    garments: Garments, row: Tensor, points: Float[Tensor, "n 2"], is_front: Bool[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """About metres of cloth to the edge of the neckline; below zero where it is cut out."""
    x, drop = points[:, 0].abs(), NECK_TOP - points[:, 1]
    kind = garments.neckline[row]

    def oval(half: float, depth: float) -> Tensor:
        return ((x / half).square() + (drop / depth).square()).sqrt().sub(1.0) * depth

    is_v = is_front & (kind == NECKLINES.index("v"))
    is_boat = is_front & (kind == NECKLINES.index("boat"))
    distance = torch.where(is_front, oval(0.095, 0.085), oval(0.09, 0.035))
    distance = torch.where(is_boat, oval(0.135, 0.055), distance)
    return torch.where(is_v, (x - (0.15 - drop) * 0.58) * 0.86, distance)


@dataclass(frozen=True)
class Worn:
    """Cones of all garments on all people, and how their surfaces go to the panels."""

    cones: Cones
    panel: Int[Tensor, " p"]
    row: Int[Tensor, "b p"]
    """Which garment each cone is of, in ``Outfit.garments``."""
    to_panel: Float[Tensor, "b p 3 4"]
    """World to front, across and along."""
    begin: Float[Tensor, " p"]
    """Metres along the panel at which the cone starts."""
    ratio: Float[Tensor, "b p"]
    """Depth of the limb as a share of its width."""
    garments: Garments
    layout: Layout

    def flat_points(
        self, cone: Int[Tensor, " n"], points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n 2"], Bool[Tensor, " n"]]:
        """Flat points of surface points, and whether they are on the front.

        Args:
            cone: which cone each point is on, counted through all people.
            points: world coordinates.
        """
        panel, row = self.panel[cone % len(self.panel)], self.row.flatten()[cone]
        front, side, along = local_points(self.to_panel, cone, points)
        along = along + self.begin[cone % len(self.panel)]
        angle = torch.atan2(side, front / self.ratio.flatten()[cone])
        folded = torch.where(angle.abs() > math.pi / 2, angle.sign() * math.pi - angle, angle)
        half = self.layout.half_width(row, panel, along)
        across = half * folded / (math.pi / 2)
        over = half * (side / SHOULDER_Y).clamp(-1.0, 1.0)
        share = ((along - 0.30) / 0.10).clamp(0.0, 1.0) * (panel == TORSO)
        across = torch.lerp(across, over, share)
        top = shoulder_line(across)
        along = torch.where(panel == TORSO, torch.minimum(along, top - 0.004), along)
        return self.layout.point(row, panel, along, across), front >= 0.0

    def is_cut_out(self, cone: Int[Tensor, " n"], points: Tensor) -> Bool[Tensor, " n"]:
        """Whether a point of a cone is in the neckline's opening."""
        flat, is_front = self.flat_points(cone, points)
        row, panel = self.row.flatten()[cone], self.panel[cone % len(self.panel)]
        return (panel == TORSO) & (neck_distance(self.garments, row, flat, is_front) < 0.0)


def shoulder_line(across: Tensor) -> Tensor:
    """Height of the flat torso's upper edge."""
    return NECK_TOP - SHOULDER_DROP * (across.abs() - 0.06).clamp(min=0.0)


def dress(people: People, frame: Frame, outfit: Outfit) -> Worn:
    """Put outfits on."""
    b, garments = len(people), outfit.garments
    limbs = body_limbs(people, frame)
    parts = [
        *_top_parts(people, frame, limbs, outfit.top),
        *_bottom_parts(people, frame, limbs, outfit),
    ]
    slot = torch.tensor([part.slot for part in parts], device=people.stature.device)
    rows = slot[None] * b + torch.arange(b, device=slot.device)[:, None]
    return Worn(
        cones=cat_cones([part.cones for part in parts]),
        panel=torch.tensor([part.panel for part in parts], device=slot.device),
        row=rows,
        to_panel=torch.stack([part.to_panel for part in parts], dim=1),
        begin=torch.tensor([part.begin for part in parts], device=slot.device),
        ratio=torch.stack([part.ratio for part in parts], dim=1),
        garments=garments,
        layout=lay_out(garments),
    )


@dataclass(frozen=True)
class _Part:
    """One cone of a garment."""

    cones: Cones
    panel: int
    slot: int
    to_panel: Float[Tensor, "b 3 4"]
    begin: float
    ratio: Float[Tensor, " b"]


def _frame_matrix(origin: Tensor, axes: Tensor, scale: Tensor) -> Float[Tensor, "b 3 4"]:
    rows = axes / scale[:, None, None]
    return torch.cat([rows, -(rows @ origin[:, :, None])], dim=-1)


def _top_parts(people: People, frame: Frame, limbs: dict[str, Limb], top: Garments) -> list[_Part]:
    size, zero = people.stature, torch.zeros_like(people.stature)
    is_dress = top.category == DRESS
    hem = torch.where(is_dress, WAIST - 0.03, _by_length(top.length, TOP_HEMS))
    torso = _frame_matrix(frame.joints["root"], frame.torso, size)
    depth = limbs["chest"].squash
    # On as a straight line below the hips, so that a long hem hangs over them.
    belly = limbs["belly"]
    flare = belly.r0 + HIP_FLARE * (belly.r1 - belly.r0)
    belly = replace(belly, end=frame.torso_point(zero, zero, -0.12 * size), r1=flare)
    away = top.loose * size
    cuts = {
        "chest": _slab(2, (hem - 0.15) * size, 9.0 + zero),
        "belly": _slab(2, zero - 9.0, (0.16 - hem) * size),
    }
    parts = []
    for name in ("chest", "belly", *(f"{s} {n}" for n in ("bust", "clavicle") for s in SIDES)):
        limb = (belly if name == "belly" else limbs[name]).inflated(away)
        slab = cuts.get(name)
        if "clavicle" in name:
            # A sleeveless top ends on the shoulder.
            end = (limb.end - limb.start).norm(dim=-1)
            slab = _slab(2, zero - 9.0, torch.where(top.sleeve == 0, 0.72 * end, 9.0 + zero))
        slab = _slab(2, zero - 9.0, zero + 9.0) if slab is None else slab
        active = people.bust > 0.0 if "bust" in name else None
        parts.append(_Part(limb.cone(slab=slab, active=active), TORSO, 0, torso, 0.0, depth))
    reach = _sleeve_reach(top) * size
    for k, side in enumerate(SIDES):
        panel = (RIGHT_SLEEVE, LEFT_SLEEVE)[k]
        for name, begin in (("upper arm", 0.0), ("forearm", UPPER_ARM)):
            limb = limbs[f"{side} {name}"].inflated(away)
            slab = _slab(2, zero - 9.0, reach - begin * size)
            cones = limb.cone(slab=slab, active=reach > begin * size)
            matrix = _frame_matrix(limb.start, limb.axes(), size)
            parts.append(_Part(cones, panel, 0, matrix, begin, torch.ones_like(size)))
    return parts


def _bottom_parts(
    people: People, frame: Frame, limbs: dict[str, Limb], outfit: Outfit
) -> list[_Part]:
    size, zero = people.stature, torch.zeros_like(people.stature)
    bottom, is_dress = outfit.bottom, outfit.top.category == DRESS
    has_legs, has_skirt = ~is_dress & ~bottom.skirt, ~is_dress & bottom.skirt
    # Thinner than a top, which hangs over it.
    away = 0.6 * bottom.loose * size
    depth = limbs["belly"].squash
    torso = _frame_matrix(frame.joints["root"], frame.torso, size)
    slab = _slab(2, (0.16 - WAIST) * size, zero + 9.0)
    cones = limbs["belly"].inflated(away).cone(slab=slab, active=~is_dress)
    parts = [_Part(cones, SKIRT, 1, torso, 0.0, depth)]
    for slot, garments, active in ((1, bottom, has_skirt), (0, outfit.top, is_dress)):
        skirt = _skirt(people, frame, garments)
        low = (skirt.end - skirt.start).norm(dim=-1)
        cones = skirt.cone(slab=_slab(2, zero, low), active=active)
        parts.append(_Part(cones, SKIRT, slot, torso, 0.0, skirt.squash))
    end = _by_length(bottom.length, LEG_ENDS) * size
    for k, side in enumerate(SIDES):
        panel = (RIGHT_LEG, LEFT_LEG)[k]
        for name, begin in (("thigh", 0.0), ("shin", THIGH)):
            limb = limbs[f"{side} {name}"].inflated(away)
            slab = _slab(2, zero - 9.0, end - begin * size)
            cones = limb.cone(slab=slab, active=has_legs & (end > begin * size))
            matrix = _frame_matrix(limb.start, limb.axes(), size)
            parts.append(_Part(cones, panel, 1, matrix, begin, torch.ones_like(size)))
    return parts


def _skirt(people: People, frame: Frame, garments: Garments) -> Limb:
    """The cone of a skirt from the waist to the hem, wide enough for hips and stride."""
    size, zero = people.stature, torch.zeros_like(people.stature)
    hem = _by_length(garments.length, SKIRT_HEMS)
    stride = torch.deg2rad(people.leg_out.amax(dim=1)).sin()
    r0 = 0.128 * people.girth + garments.loose
    r1 = 0.165 * people.hips + garments.loose + (WAIST - hem) * (0.10 + stride)
    start, end = (frame.torso_point(zero, zero, z * size) for z in (WAIST + zero, hem))
    squash = (0.74 * people.girth).clamp(max=0.95)
    return Limb(start, end, r0 * size, r1 * size, frame.front, squash)


def _slab(axis: int, low: Tensor, high: Tensor) -> Float[Tensor, "b 5"]:
    """What of a cone is kept along one local axis."""
    normal = torch.zeros(len(low), 3, device=low.device)
    normal[:, axis] = 1.0
    return torch.cat([normal, low[:, None], high[:, None]], dim=1)
