"""What a scene of two objects shows, object by object: prompt binding, places, and what changed.

* binding: each object is rendered alone, that is all that lies in its box, 10 % larger, by cameras
  that see the box as the judge's training images show objects; share of these views in which the
  judge names both the object's kind and its colour;
* layout error: distance between the middle of the object's pixels, found by their colour, and the
  box's projected centre, as a share of the image, sideways (a mushroom's white stem has no colour).
  A painted box has up to 0.03: its front is nearer than its middle;
* change: mean absolute difference of the pixels of an object's box to another scene's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.box_configs import BoxConfig
from renderers.boxes import around_box, box_masks, project_points
from renderers.cameras import Cameras
from renderers.volume_renderer import VolumeRenderer
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.palette import COLORS
from studio.evaluation.judge import Judge
from studio.evaluation.views import render_field
from studio.scene_parts import SceneRenderer

__all__ = ["Placed", "alone", "binding", "change_in", "layout_error", "views_of"]

MARGIN = 1.15
MIN_PIXELS = 20


@dataclass(frozen=True)
class Placed:
    """An object that is asked for."""

    kind: str
    color: str
    box: BoxConfig


@torch.no_grad()
def views_of(renderer: SceneRenderer, cameras: Cameras) -> Float[Tensor, "b h w 3"]:
    """Evaluation renders over white."""
    return renderer.render(cameras).comp_rgb.clamp(0.0, 1.0)


def alone(renderer: VolumeRenderer, cameras: Cameras, wanted: Placed) -> Float[Tensor, "b h w 3"]:
    """Views of what lies in an object's box, as large as the judge is used to."""
    return render_field(renderer, around_box(cameras, wanted.box)).rgb


def binding(judge: Judge, views: Float[Tensor, "n 64 64 3"], wanted: Placed) -> dict[str, float]:
    """Shares of the views of one object with the right kind, the right colour, and both."""
    verdicts = judge(views)
    kind = verdicts.kind.argmax(dim=1) == KIND_NAMES.index(wanted.kind)
    color = verdicts.color.argmax(dim=1) == COLOR_NAMES.index(wanted.color)
    names = [KIND_NAMES[k] for k in verdicts.kind.argmax(dim=1)]
    return {
        "views": len(views),
        "kind": _mean(kind),
        "color": _mean(color),
        "both": _mean(kind & color),
        "most_often": max(set(names), key=names.count) if names else "",
    }


def layout_error(
    images: Float[Tensor, "b h w 3"], cameras: Cameras, wanted: Placed
) -> dict[str, float]:
    """Mean sideways distance of the object's colour to its box's centre, where it is seen."""
    color = torch.tensor(COLORS[wanted.color], dtype=torch.float32)
    direction = F.normalize(color - color.mean(), dim=0)
    chroma = images - images.mean(dim=-1, keepdim=True)
    strength = chroma.norm(dim=-1)
    mine = (chroma @ direction > 0.8 * strength) & (strength > 0.2)
    places, _ = project_points(cameras, torch.tensor([wanted.box.center]))
    columns = (torch.arange(images.shape[2]) + 0.5) / images.shape[2]
    errors = [
        abs(float((mask.float().sum(dim=0) * columns).sum() / mask.sum()) - float(place[0, 0]))
        for mask, place in zip(mine, places, strict=True)
        if mask.sum() >= MIN_PIXELS
    ]
    return {"views": len(errors), "sideways": sum(errors) / len(errors) if errors else math.nan}


def change_in(
    before: Float[Tensor, "b h w 3"],
    after: Float[Tensor, "b h w 3"],
    cameras: Cameras,
    boxes: Sequence[BoxConfig],
) -> list[float]:
    """Mean absolute difference where each box is seen, and in all other pixels."""
    masks = box_masks([_larger(box) for box in boxes], cameras, tuple(before.shape[1:3]))
    masks = torch.cat([masks, 1.0 - masks.sum(dim=1, keepdim=True)], dim=1)
    difference = (before - after).abs().mean(dim=-1)[:, None]
    return ((masks * difference).sum(dim=(0, 2, 3)) / masks.sum(dim=(0, 2, 3))).tolist()


def _larger(box: BoxConfig) -> BoxConfig:
    return BoxConfig(box.center, tuple(MARGIN * length for length in box.size))


def _mean(flags: Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else math.nan
