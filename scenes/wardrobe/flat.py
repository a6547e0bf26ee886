"""Product views: garments flat on a white ground.

canvas = canvas_of(garments)
views, alpha = flat_views(garments, height=64, width=48)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenes.wardrobe.garments import DRESS, Garments
from scenes.wardrobe.shading import cloth_color
from scenes.wardrobe.worn import PANELS, Layout, lay_out, neck_distance, shoulder_line

__all__ = ["Canvas", "canvas_of", "flat_views"]

WHITE = 0.98
EDGE_SHADE, EDGE_WIDTH = 0.22, 0.018
FAR = 9.0
TORSO = PANELS.index("torso")
HEIGHTS = (1.02, 1.12, 1.40)
"""Metres of cloth from top to bottom of the view, by category."""
CENTERS = (0.19, -0.38, -0.14)


@dataclass(frozen=True)
class Canvas:
    """The part of the flat plane that a product view shows; it is 4 high and 3 wide."""

    center: Float[Tensor, "g 2"]
    height: Float[Tensor, " g"]

    def to_grid(self, row: Int[Tensor, " n"], points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Flat points as ``grid_sample`` has them (align_corners False): -1..1, y down."""
        half = 0.5 * self.height[row]
        offset = points - self.center[row]
        return torch.stack([offset[:, 0] / (0.75 * half), -offset[:, 1] / half], dim=-1)

    def points(self, height: int, width: int) -> Float[Tensor, "g h w 2"]:
        """Flat points of pixel centres."""
        device = self.height.device
        x = (torch.arange(width, device=device) + 0.5) / width * 2.0 - 1.0
        y = 1.0 - (torch.arange(height, device=device) + 0.5) / height * 2.0
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        half = 0.5 * self.height[:, None, None, None]
        return self.center[:, None, None] + grid * half * torch.tensor([0.75, 1.0], device=device)


def canvas_of(garments: Garments) -> Canvas:
    """Where the product views of garments are."""
    device = garments.loose.device
    height = torch.tensor(HEIGHTS, device=device)[garments.category]
    middle = torch.tensor(CENTERS, device=device)[garments.category]
    return Canvas(torch.stack([torch.zeros_like(middle), middle], dim=1), height)


def flat_views(
    garments: Garments, *, height: int, width: int, supersample: int = 2
) -> tuple[Float[Tensor, "g h w 3"], Float[Tensor, "g h w"]]:
    """Product views in 0..1 and the garments' coverage."""
    s, g = supersample, len(garments)
    layout = lay_out(garments)
    flat = canvas_of(garments).points(height * s, width * s).flatten(0, 2)
    pixels = height * s * width * s
    row = torch.arange(g, device=flat.device).repeat_interleave(pixels)
    image = torch.full((len(flat), 3), WHITE, device=flat.device)
    covered = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    for panel in range(len(PANELS)):
        has_panel = layout.extent[:, panel, 0] < layout.extent[:, panel, 1]
        mine = has_panel.repeat_interleave(pixels).nonzero()[:, 0]
        edge = _edge_distance(garments, layout, panel, row[mine], flat[mine])
        inside = (edge > 0.0).nonzero()[:, 0]
        here = mine[inside]
        soft = 1.0 - EDGE_SHADE * torch.exp(-edge[inside] / EDGE_WIDTH)
        number, front = torch.full_like(here, panel), torch.ones_like(here, dtype=torch.bool)
        color = cloth_color((garments, layout), row[here], number, flat[here], front)
        image[here] = color * soft[:, None]
        covered[here] = True
    image = image.reshape(g, height, s, width, s, 3).mean(dim=(2, 4))
    return image, covered.to(image).reshape(g, height, s, width, s).mean(dim=(2, 4))


def _edge_distance(
    garments: Garments,
    layout: Layout,
    index: int,
    row: Int[Tensor, " n"],
    flat: Float[Tensor, "n 2"],
) -> Float[Tensor, " n"]:
    """Metres to the edge of a panel; below zero outside of it."""
    panel = torch.full_like(row, index)
    offset, d = flat - layout.origin[row, panel], layout.direction[row, panel]
    along = (offset * d).sum(-1)
    across = offset[:, 0] * d[:, 1] - offset[:, 1] * d[:, 0]
    low, high = layout.extent[row, panel].unbind(-1)
    side, end = layout.half_width(row, panel, along) - across.abs(), along - low
    if index != TORSO:
        return torch.minimum(torch.minimum(side, end), high - along)
    # The waist of a dress ends the panel, but shows no edge.
    end = torch.where(garments.category[row] == DRESS, end * FAR, end)
    top = shoulder_line(flat[:, 0]) - flat[:, 1]
    neck = neck_distance(garments, row, flat, torch.ones_like(row, dtype=torch.bool))
    return torch.minimum(torch.minimum(side, end), torch.minimum(top, neck))
