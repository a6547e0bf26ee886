"""Boxes in the scene as cameras see them: where their corners land, and which pixels they fill.

A box fills a pixel where the ray through it meets the box (the slab test of Kay and Kajiya, 1986);
of several boxes the nearest one counts. Masks are means over sub-pixels, so outlines are soft and
areas exact to about a pixel's ``samples``-th.

    masks = box_masks(boxes, cameras, (16, 16))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.box_configs import BoxConfig
from renderers.cameras import Cameras

__all__ = ["around_box", "box_corners", "box_distances", "box_masks", "project_points"]

SAMPLES = 4
"""Sub-pixels along each side of a pixel."""
SMALLEST = 1e-12
"""Stands for a direction's zero; the ray then leaves the slab at a huge distance."""


def box_corners(boxes: Sequence[BoxConfig]) -> Float[Tensor, "k 8 3"]:
    """The corners of each box."""
    signs = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * 3)
    center, size = _tensors(boxes, signs)
    return center[:, None] + signs * size[:, None]


def project_points(
    cameras: Cameras, points: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """Where points land, and how far in front of each camera they are.

    Returns:
        Shares of the image's width, from the left, and height, from the top; depth along the
        viewing axis. A point behind the camera has a negative depth and no meaningful place.
    """
    homogeneous = F.pad(points.to(cameras.c2w), (0, 1), value=1.0)
    clip = torch.einsum("bij,nj->bni", cameras.mvp(), homogeneous)
    return 0.5 * (clip[..., :2] / clip[..., 3:] + 1.0), clip[..., 3]


def box_distances(
    boxes: Sequence[BoxConfig],
    origins: Float[Tensor, "*rays 3"],
    directions: Float[Tensor, "*rays 3"],
) -> Float[Tensor, "*rays k"]:
    """Distance along each ray to each box; 0 from inside of it, infinity where it is missed."""
    center, size = _tensors(boxes, origins)
    origins, directions = origins[..., None, :], directions[..., None, :]
    tiny = directions.abs() < SMALLEST
    directions = torch.where(tiny, SMALLEST, directions)
    ends = [(center + sign * 0.5 * size - origins) / directions for sign in (-1.0, 1.0)]
    near = torch.minimum(*ends).amax(dim=-1).clamp(min=0.0)
    far = torch.maximum(*ends).amin(dim=-1)
    return torch.where(near <= far, near, torch.inf)


def box_masks(
    boxes: Sequence[BoxConfig], cameras: Cameras, size: tuple[int, int], *, samples: int = SAMPLES
) -> Float[Tensor, "b k h w"]:
    """Share of each pixel in which a box is seen, in front of all other boxes.

    Args:
        boxes: one or more.
        cameras: the views.
        size: rows and columns of the masks.
        samples: sub-pixels along each side of a pixel.
    """
    fine = cameras.resized(size[0] * samples, size[1] * samples)
    distance = box_distances(boxes, *fine.rays())
    nearest = distance.argmin(dim=-1, keepdim=True)
    seen = torch.zeros_like(distance).scatter_(-1, nearest, 1.0) * torch.isfinite(distance)
    return F.avg_pool2d(seen.movedim(-1, 1), samples)


def around_box(
    cameras: Cameras, box: BoxConfig, *, object_radius: float = 0.85, margin: float = 1.1
) -> Cameras:
    """Cameras that see one box alone, as they saw a whole scene of one object.

    Args:
        cameras: views of a scene.
        box: what they shall see.
        object_radius: radius of a single object in their views; it becomes half of the box's
            longest edge.
        margin: size of what is seen, in boxes; objects may stand a little over.
    """
    center, size = torch.tensor(box.center), torch.tensor(box.size)
    half = 0.5 * margin * size
    within = torch.stack([center - half, center + half])
    return cameras.around(center, 0.5 * max(box.size) / object_radius, within)


def _tensors(boxes: Sequence[BoxConfig], like: Tensor) -> tuple[Tensor, Tensor]:
    """Centres and sizes, [k, 3] each."""
    return (
        like.new_tensor([box.center for box in boxes]),
        like.new_tensor([box.size for box in boxes]),
    )
