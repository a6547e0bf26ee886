"""Colours of people and clothes, and simple light.

One distant light, light from all sides, and darker places where a surface lies behind its
neighbours in the image. Worn cloth has soft folds, which its flat view does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scenes.wardrobe.body import PARTS, Frame
from scenes.wardrobe.cones import Cones, cone_normals
from scenes.wardrobe.garments import Garments, printed_color
from scenes.wardrobe.people import People
from scenes.wardrobe.worn import PANELS, Layout, Worn, neck_distance

__all__ = ["Surface", "cloth_color", "shade"]

AMBIENT, DIRECT, SKY = 0.50, 0.42, 0.14
TRIM = 0.016
"""Width of a collar or cuff in metres."""
CREVICE_REACH, CREVICE_DEPTH = 0.028, 0.55
TORSO = PANELS.index("torso")


@dataclass(frozen=True)
class Surface:
    """Points on the cones of scenes."""

    people: People
    frame: Frame
    worn: Worn
    cones: Cones
    cone: Int[Tensor, " n"]
    """Counted through all scenes."""
    column: Int[Tensor, " n"]
    """Which of a scene's cones."""
    points: Float[Tensor, "n 3"]

    @property
    def person(self) -> Int[Tensor, " n"]:
        """Whose."""
        return self.cone // len(self.cones)


def shade(
    surface: Surface, depth: Float[Tensor, "b h w"], pixel: Int[Tensor, " n"]
) -> Float[Tensor, "n 3"]:
    """Shaded colours.

    Args:
        surface: what is seen.
        depth: of all pixels, infinite for the backdrop.
        pixel: that each point is seen in, counted through all images.
    """
    normal = cone_normals(surface.cones, surface.cone, surface.points)
    light = surface.people.light[surface.person]
    direct = (normal * light).sum(-1).clamp(min=0.0)
    level = AMBIENT + DIRECT * direct + SKY * (0.5 + 0.5 * normal[:, 2])
    level = level * _crevices(depth).flatten()[pixel]
    color = _body_color(surface)
    clothes = len(surface.worn.panel)
    index = (surface.column < clothes).nonzero()[:, 0]
    worn = surface.person[index] * clothes + surface.column[index]
    flat, front = surface.worn.flat_points(worn, surface.points[index])
    row, panel = surface.worn.row.flatten()[worn], surface.worn.panel[worn % clothes]
    cloth = (surface.worn.garments, surface.worn.layout)
    color[index] = cloth_color(cloth, row, panel, flat, front)
    folds = surface.worn.garments.folds[row]
    waves = (23.0 * flat[:, 1] + 31.0 * flat[:, 0] + folds[:, 0]).sin()
    waves = waves * (19.0 * flat[:, 0] - 9.0 * flat[:, 1] + folds[:, 1]).sin()
    level[index] = level[index] * (1.0 + 0.06 * waves)
    return color * level[:, None]


def cloth_color(
    cloth: tuple[Garments, Layout],
    row: Int[Tensor, " n"],
    panel: Int[Tensor, " n"],
    flat: Float[Tensor, "n 2"],
    is_front: Bool[Tensor, " n"],
) -> Float[Tensor, "n 3"]:
    """Colour of cloth at flat points of panels: print, collar and cuffs.

    Args:
        cloth: garments and how they lie flat.
        row: which garment each point is of.
        panel: and which of its panels.
        flat: the points, metres.
        is_front: collars and logos differ at the back.
    """
    garments, layout = cloth
    color = printed_color(garments, row, flat, is_front)
    near_neck = neck_distance(garments, row, flat, is_front) < TRIM
    offset = flat - layout.origin[row, panel]
    along = (offset * layout.direction[row, panel]).sum(-1)
    is_sleeve = (panel == PANELS.index("right sleeve")) | (panel == PANELS.index("left sleeve"))
    cuff = is_sleeve & (along > layout.extent[row, panel, 1] - TRIM)
    trimmed = garments.collar[row] & ((near_neck & (panel == TORSO)) | cuff)
    return torch.where(trimmed[:, None], garments.colors[row, 2], color)


def _body_color(surface: Surface) -> Float[Tensor, "n 3"]:
    people, person = surface.people, surface.person
    part = surface.column - len(surface.worn.panel)
    color = people.skin.index_select(0, person)
    is_hair = part >= PARTS.index("hair cap")
    is_foot = (part == PARTS.index("right foot")) | (part == PARTS.index("left foot"))
    color = torch.where(is_hair[:, None], people.hair[person], color)
    color = torch.where(is_foot[:, None], people.shoes[person], color)
    is_face = (part == PARTS.index("skull")) | (part == PARTS.index("jaw"))
    index = is_face.nonzero()[:, 0]
    color[index] = _face_color(surface, index, color[index])
    return color


def _face_color(surface: Surface, index: Tensor, skin: Tensor) -> Float[Tensor, "n 3"]:
    """Eyes, brows, mouth and cheeks, painted on the head."""
    people, person = surface.people, surface.person[index]
    skull = surface.frame.joints["skull"][person]
    local = surface.frame.head[person] @ (surface.points[index] - skull)[:, :, None]
    x, y, z = (local[:, :, 0] / people.stature[person, None]).unbind(-1)
    side, eye = y.abs(), people.eye_size[person]
    is_front = x > 0.0

    def inside(dy: Tensor, dz: Tensor, wide: Tensor | float, high: Tensor | float) -> Tensor:
        return is_front & ((dy / wide).square() + (dz / high).square() < 1.0)

    cheeks = ((side - 0.042).square() + (z + 0.03).square()) / 0.022**2
    blush = torch.exp(-cheeks) * is_front * 0.25
    warm = skin * torch.tensor([1.0, 0.80, 0.80], device=skin.device)
    color = torch.lerp(skin, warm, blush[:, None])
    lips = skin * torch.tensor([0.82, 0.45, 0.45], device=skin.device)
    line = inside(y, z + 0.074 - 3.0 * y.square(), 0.026 * people.mouth[person], 0.0085)
    color = torch.where(line[:, None], lips, color)
    white = torch.full_like(skin, 0.96)
    color = torch.where(
        inside(side - 0.032, z - 0.008, 0.0165 * eye, 0.0105 * eye)[:, None], white, color
    )
    iris = people.iris[person] * 0.6
    color = torch.where(
        inside(side - 0.031, z - 0.008, 0.0085 * eye, 0.0100 * eye)[:, None], iris, color
    )
    brow = inside(side - 0.033, z - 0.034 + 6.0 * (side - 0.033).square(), 0.020, 0.0055)
    return torch.where(brow[:, None], people.hair[person] * 0.7, color)


def _crevices(depth: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Below 1 where a surface lies behind the mean of its surroundings in the image."""
    size = 2 * max(1, round(CREVICE_REACH * depth.shape[1])) + 1
    seen = torch.isfinite(depth)
    # Sums of the person's own pixels, along rows and then columns.
    stack = torch.stack([torch.where(seen, depth, 0.0), seen.to(depth)], dim=1)
    for kernel in ((1, size), (size, 1)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        stack = F.avg_pool2d(stack, kernel, stride=1, padding=padding)
    mean = stack[:, 0] / stack[:, 1].clamp(min=1e-6)
    behind = torch.where(seen, depth - mean, 0.0).clamp(0.0, 0.12)
    return 1.0 - CREVICE_DEPTH * (behind / 0.12).sqrt() * 0.7
