"""Which cone each pixel shows: only the pixels around a cone's image are tried, then a z-buffer.

pairs = trace(cones, cameras)
depth, cone = nearest(pairs, allowed)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from renderers.cameras import Cameras
from scenes.wardrobe.cones import Cones, hit_cones

__all__ = ["Pairs", "nearest", "project", "trace"]

MARGIN = 1.5
"""Pixels around the image of a cone's bounds."""


@dataclass(frozen=True)
class Pairs:
    """Rays that hit a cone, each with that cone."""

    ray: Int[Tensor, " n"]
    """Pixel, counted through all images."""
    cone: Int[Tensor, " n"]
    """Cone, counted through all scenes."""
    t: Float[Tensor, " n"]
    """Distance along the ray."""
    origins: Float[Tensor, "b 3"]
    rays_d: Float[Tensor, "rays 3"]

    def at(self, ray: Int[Tensor, " k"], t: Float[Tensor, " k"]) -> Float[Tensor, "k 3"]:
        """Points at distances along rays."""
        scene = ray // (len(self.rays_d) // len(self.origins))
        d = self.rays_d.index_select(0, ray)
        return self.origins.index_select(0, scene) + t[:, None] * d

    def points(self) -> Float[Tensor, "n 3"]:
        """Where the rays meet the cones."""
        return self.at(self.ray, self.t)

    def only(self, kept: Bool[Tensor, " n"]) -> Pairs:
        """The pairs that are kept."""
        rows = kept.nonzero()[:, 0]
        ray, cone, t = (part.index_select(0, rows) for part in (self.ray, self.cone, self.t))
        return replace(self, ray=ray, cone=cone, t=t)


def project(
    cameras: Cameras, points: Float[Tensor, "b k 3"]
) -> tuple[Float[Tensor, "b k 2"], Float[Tensor, "b k"]]:
    """Pixel coordinates (column, row) of world points, one camera for each row, and their depth."""
    w2c = cameras.w2c()
    local = points @ w2c[:, :3, :3].transpose(1, 2) + w2c[:, None, :3, 3]
    depth = -local[..., 2]
    focal = (0.5 * cameras.height / torch.tan(0.5 * cameras.fovy))[:, None]
    col = focal * local[..., 0] / depth + 0.5 * cameras.width
    row = -focal * local[..., 1] / depth + 0.5 * cameras.height
    return torch.stack([col, row], dim=-1), depth


def trace(cones: Cones, cameras: Cameras) -> Pairs:
    """All hits of pixels' centres, scene k seen by camera k."""
    height, width = cameras.height, cameras.width
    rays_d = cameras.rays()[1].reshape(-1, 3)
    low, high = _boxes(cones, cameras)
    spans = (high - low).clamp(min=0)
    counts = (spans[..., 0] * spans[..., 1] * cones.active).flatten()
    cone = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    first = counts.cumsum(0) - counts
    scene = torch.arange(len(low), device=counts.device)[:, None].expand(-1, len(cones))
    corner = (scene * height + low[..., 1]) * width + low[..., 0]
    rows = torch.stack([first, spans[..., 0].flatten().clamp(min=1), corner.flatten()])
    first, columns, corner = rows.index_select(1, cone)
    within = torch.arange(len(cone), device=counts.device) - first
    down = torch.div(within, columns, rounding_mode="floor")
    ray = corner + down * width + within - down * columns
    t = hit_cones(cones, cone, cameras.position, rays_d.t().contiguous().index_select(1, ray))
    pairs = Pairs(ray, cone, t, cameras.position, rays_d)
    return pairs.only(torch.isfinite(t))


def nearest(
    pairs: Pairs, allowed: Bool[Tensor, " cones"] | None = None
) -> tuple[Float[Tensor, " rays"], Int[Tensor, " rays"]]:
    """Distance (infinite for none) and cone (-1 for none) that each ray meets first.

    Args:
        pairs: all hits.
        allowed: cones that count, of those of all scenes; all by default.
    """
    if allowed is not None:
        pairs = pairs.only(allowed[pairs.cone])
    rays = len(pairs.rays_d)
    depth = torch.full((rays,), torch.inf, device=pairs.t.device)
    depth = depth.scatter_reduce(0, pairs.ray, pairs.t, "amin")
    wins = (pairs.t == depth.index_select(0, pairs.ray)).nonzero()[:, 0]
    none = torch.iinfo(torch.int64).max
    cone = torch.full((rays,), none, device=pairs.t.device)
    # Of cones at one distance the first, on any device.
    cone = cone.scatter_reduce(
        0, pairs.ray.index_select(0, wins), pairs.cone.index_select(0, wins), "amin"
    )
    return depth, torch.where(cone == none, -1, cone)


def _boxes(cones: Cones, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """First column and row of each cone's image, and those after the last; ``[b, p, 2]``."""
    b, p = cones.length.shape
    centers = cones.bounds[..., :3].reshape(b, 2 * p, 3)
    pixel, depth = project(cameras, centers)
    focal = (0.5 * cameras.height / torch.tan(0.5 * cameras.fovy))[:, None]
    radius = cones.bounds[..., 3].reshape(b, 2 * p)
    reach = focal * radius / (depth - radius).clamp(min=1e-3) + MARGIN
    low = (pixel - reach[..., None]).reshape(b, p, 2, 2).amin(dim=2).floor().long()
    high = (pixel + reach[..., None]).reshape(b, p, 2, 2).amax(dim=2).ceil().long()
    size = torch.tensor([cameras.width, cameras.height], device=low.device)
    return torch.minimum(low.clamp(min=0), size), torch.minimum(high.clamp(min=0), size)
