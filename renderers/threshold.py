"""Choose the density at which a radiance field becomes a surface.

A volume has no surface; the eye sees one where rays turn opaque. So parallel rays are sent through
the sampled density from several directions, their opacity and median depth are what the renderer
would show, and every level of a ladder is judged by what its iso-surface would show on the same
rays: a ray sees the surface exactly if its densest sample exceeds the level, at the depth where it
first does. Of all levels whose silhouettes are about as good as the best, the one with the best
depths wins; where that is a plateau (a hard step in density), its middle. No mesh is needed, so
forty levels cost about a second.

Only levels inside the range of the density have a surface. Where none of the ladder's is, the
densest half percent of the scene is taken, else what exceeds half the maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from renderers.errors import EmptyGeometry

__all__ = [
    "LevelScore",
    "RayProbe",
    "Rule",
    "choose_threshold",
    "describe_range",
    "fallback_threshold",
    "probe_density",
]

Rule = Literal["silhouettes", "percentile", "half maximum"]
"""How a level was found; the last two are fall-backs where silhouettes tell nothing."""

N_VIEWS = 8
VIEW_PIXELS = 64
RAY_STEPS = 128
LADDER_STEPS = 40
# The ladder spans this factor below the densest sample.
LADDER_SPAN = 1e4
# Silhouettes this close to the best count as equally good, then depth decides.
IOU_SLACK = 0.01
# In ray steps: depths this close to the best count as equally good.
DEPTH_SLACK = 0.25
# With no ray more opaque than this there is nothing to see, hence nothing to export.
MIN_OPACITY = 0.1
# Where no level can be judged by its silhouettes, the densest part of the scene is taken.
DENSEST_SHARE = 0.005


@dataclass(frozen=True)
class LevelScore:
    """How well the iso-surface at one level stands for the rendered volume."""

    threshold: float
    """Density, per world unit."""
    silhouette_iou: float
    """Soft intersection over union of the surface's silhouettes with the rendered opacity, 0..1."""
    depth_error: float
    """Mean distance between the surface and the rendered median depth, world units."""
    rule: Rule = "silhouettes"
    """What the level was chosen by."""


@dataclass(frozen=True)
class RayProbe:
    """Densities along parallel rays, and what a renderer shows of them."""

    sigma: Float[Tensor, "n s"]
    """Density at the samples; rays that meet nothing are left out."""
    step: float
    """Distance between samples, world units."""
    opacity: Float[Tensor, " n"]
    """Rendered opacity of the ray."""
    median_step: Float[Tensor, " n"]
    """Sample at which half of the final opacity is reached."""


def choose_threshold(density: Float[Tensor, "r r r"], *, radius: float) -> LevelScore:
    """Search the ladder for a level with densities on both sides.

    Args:
        density: samples on the grid ``[-radius, radius]^3``, corners included, x first.
        radius: half size of the scene.

    Raises:
        EmptyGeometry: no ray is opaque enough to be seen, or all of the scene is about equally
            dense; names the density range.
    """
    probe = probe_density(density, radius=radius)
    most = float(probe.opacity.max()) if len(probe.opacity) else 0.0
    if most < MIN_OPACITY:
        raise EmptyGeometry(
            f"No visible surface ({describe_range(density)}; the most opaque ray reaches "
            f"{most:.2g}). Expected an opacity of at least {MIN_OPACITY}. Train longer, lower the "
            "sparsity loss, or pass --threshold with a value inside the range."
        )
    low, high = float(density.min()), float(density.max())
    ladder = torch.logspace(-math.log10(LADDER_SPAN), 0, LADDER_STEPS)
    levels = float(probe.sigma.max()) * 0.95 * ladder
    scores = [_score(probe, float(level)) for level in levels if low < float(level) < high]
    if not scores:
        return _densest(density, probe)
    best = max(score.silhouette_iou for score in scores)
    good = [score for score in scores if score.silhouette_iou >= best - IOU_SLACK]
    nearest = min(score.depth_error for score in good)
    plateau = [score for score in good if score.depth_error <= nearest + DEPTH_SLACK * probe.step]
    return plateau[len(plateau) // 2]


def fallback_threshold(density: Float[Tensor, "r r r"]) -> tuple[Rule, float] | None:
    """A level inside the range of the density, for scenes whose silhouettes tell none.

    Returns:
        The densest half percent's, else half the maximum; None where neither has densities on both
        sides.
    """
    count = max(int(DENSEST_SHARE * density.numel()), 1)
    levels: tuple[tuple[Rule, float], ...] = (
        ("percentile", float(density.reshape(-1).topk(count + 1).values[-1])),
        ("half maximum", 0.5 * float(density.max())),
    )
    low, high = max(float(density.min()), 0.0), float(density.max())
    return next(((rule, level) for rule, level in levels if low < level < high), None)


def describe_range(values: Tensor) -> str:
    """Minimum, mean and maximum of a density grid, in words."""
    return (
        f"density min {float(values.min()):.3g}, mean {float(values.mean()):.3g}, "
        f"max {float(values.max()):.3g}"
    )


def probe_density(density: Float[Tensor, "r r r"], *, radius: float) -> RayProbe:
    """Send parallel rays from ``N_VIEWS`` directions through a density grid."""
    half = math.sqrt(3.0)  # the box's corner, in units of the radius
    pixels = (torch.arange(VIEW_PIXELS) + 0.5) / VIEW_PIXELS * 2.0 - 1.0
    depths = (torch.arange(RAY_STEPS) + 0.5) / RAY_STEPS * 2.0 - 1.0
    offsets = torch.stack(torch.meshgrid(pixels, pixels, depths, indexing="ij"), -1) * half
    volume = density.detach().float().cpu()[None, None]
    rays = []
    for frame in _view_frames(N_VIEWS):
        points = offsets @ frame  # [p, p, s, 3]
        # grid_sample wants the fastest axis (z) first.
        sampled = F.grid_sample(volume, points.flip(-1)[None], align_corners=True)
        rays.append(sampled[0, 0].reshape(-1, RAY_STEPS))
    sigma = torch.cat(rays)
    sigma = sigma[sigma.amax(dim=1) > 0.0]
    step = 2.0 * half * radius / RAY_STEPS
    absorbed = 1.0 - torch.exp(-torch.cumsum(sigma * step, dim=1))
    opacity = absorbed[:, -1]
    median = (absorbed < 0.5 * opacity[:, None]).sum(dim=1).float()
    return RayProbe(sigma, step, opacity, median)


def _densest(density: Float[Tensor, "r r r"], probe: RayProbe) -> LevelScore:
    """The fall-back's level, judged like those of the ladder."""
    found = fallback_threshold(density)
    if found is None:
        raise EmptyGeometry(
            f"No surface: all of the scene is about equally dense ({describe_range(density)}), so "
            "no level stands for an object. Expected empty space around it. Train longer, or raise "
            "the sparsity loss."
        )
    rule, level = found
    return replace(_score(probe, level), rule=rule)


def _score(probe: RayProbe, level: float) -> LevelScore:
    """Judge one level against the rendered rays."""
    above: Bool[Tensor, "n s"] = probe.sigma > level
    seen = above.any(dim=1)
    overlap = probe.opacity[seen].sum()
    union = seen.sum() + probe.opacity[~seen].sum()
    iou = float(overlap / union.clamp_min(1e-9))
    first = above[seen].float().argmax(dim=1).float()
    error = ((first - probe.median_step[seen]).abs() * probe.opacity[seen]).sum()
    depth_error = float(error / overlap.clamp_min(1e-9)) * probe.step
    return LevelScore(level, iou, depth_error)


def _view_frames(count: int) -> Float[Tensor, "count 3 3"]:
    """Rows right, up, forward of views spread evenly over the sphere (Fibonacci lattice)."""
    index = torch.arange(count) + 0.5
    height = 1.0 - 2.0 * index / count
    angle = index * math.pi * (3.0 - math.sqrt(5.0))
    ring = (1.0 - height**2).sqrt()
    forward = torch.stack([ring * angle.cos(), ring * angle.sin(), height], dim=-1)
    right = F.normalize(torch.linalg.cross(forward, torch.tensor([[0.0, 0.0, 1.0]])), dim=-1)
    return torch.stack([right, torch.linalg.cross(right, forward), forward], dim=1)
