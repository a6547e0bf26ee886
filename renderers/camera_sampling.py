"""Random camera draws for guidance: independent views, or groups of orthogonal views.

DreamFusion (arXiv 2209.14988, section 3.1) and Magic3D (arXiv 2211.10440) describe the
distributions; the elevation mix, the stratified azimuth and the perturbations follow threestudio's
defaults. Groups of views at constant apparent size follow MVDream (arXiv 2308.16512, section 3.2).

Deviation from the papers: azimuths are stratified by default, because a batch that sees all sides
gives a steadier gradient. ``azimuth_sampling: independent`` turns it off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.camera_configs import (
    CamerasConfig,
    DreamFusionLightConfig,
    LightConfig,
    MultiViewCamerasConfig,
    RandomCamerasConfig,
    ResolutionMilestone,
)
from renderers.poses import directions_from_angles, up_from_angles, wrap_deg

__all__ = [
    "CameraDraw",
    "draw_multiview",
    "draw_random",
    "milestone_at",
    "open_range",
    "place_light",
    "sample_azimuth",
    "sample_elevation",
]

Range = tuple[float, float]


@dataclass(frozen=True)
class CameraDraw:
    """What a sampler draws, before it becomes a :class:`~renderers.cameras.Cameras`."""

    position: Float[Tensor, "b 3"]
    center: Float[Tensor, "b 3"]
    up: Float[Tensor, "b 3"]
    fovy: Float[Tensor, " b"]
    azimuth_deg: Float[Tensor, " b"]
    elevation_deg: Float[Tensor, " b"]
    camera_distance: Float[Tensor, " b"]
    light_position: Float[Tensor, "b 3"]


def draw_random(
    config: RandomCamerasConfig, batch_size: int, generator: torch.Generator, *, fraction: float
) -> CameraDraw:
    """Draw ``batch_size`` views, each with its own elevation, distance, field of view and light."""
    opening = _opening(fraction, config.progressive_until)
    azimuth_range = open_range(config.azimuth_deg_range, 0.0, opening)
    elevation_range = open_range(
        config.elevation_deg_range, config.progressive_elevation_deg, opening
    )
    azimuth = sample_azimuth(azimuth_range, batch_size, config.azimuth_sampling, generator)
    elevation = sample_elevation(
        elevation_range, batch_size, config.uniform_sphere_probability, generator
    )
    distance = _uniform(config.distance_range, batch_size, generator)
    fovy = torch.deg2rad(_uniform(config.fovy_deg_range, batch_size, generator))
    position = distance[:, None] * directions_from_angles(azimuth, elevation)
    position = position + config.camera_perturb * (2.0 * _rand3(batch_size, generator) - 1.0)
    center = config.center_perturb * _randn3(batch_size, generator)
    up = up_from_angles(azimuth, elevation) + config.up_perturb * _randn3(batch_size, generator)
    return CameraDraw(
        position=position,
        center=center,
        up=up,
        fovy=fovy,
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        camera_distance=distance,
        light_position=place_light(config.light, position, generator),
    )


def draw_multiview(
    config: MultiViewCamerasConfig, batch_size: int, generator: torch.Generator, *, fraction: float
) -> CameraDraw:
    """Draw groups of ``n_views`` views; a group shares everything but the azimuth.

    The distance is ``relative_distance / tan(fovy / 2)``, so the object covers the same share of
    the image whatever the field of view. ``batch_size`` counts views, a multiple of ``n_views``.
    """
    opening = _opening(fraction, config.progressive_until)
    groups, n_views = batch_size // config.n_views, config.n_views
    elevation_range = open_range(
        config.elevation_deg_range, config.progressive_elevation_deg, opening
    )
    start = 360.0 * torch.rand(groups, generator=generator) - 180.0
    turns = torch.arange(n_views) * (360.0 / n_views)
    azimuth = wrap_deg(start[:, None] + turns).reshape(-1)
    elevation = _uniform(elevation_range, groups, generator).repeat_interleave(n_views)
    fovy = torch.deg2rad(_uniform(config.fovy_deg_range, groups, generator))
    relative = _uniform(config.relative_distance_range, groups, generator)
    distance = (relative / torch.tan(0.5 * fovy)).repeat_interleave(n_views)
    position = distance[:, None] * directions_from_angles(azimuth, elevation)
    # One light for a group: its views are one scene at one moment, lit as seen from the first view.
    light = place_light(config.light, position[::n_views], generator)
    return CameraDraw(
        position=position,
        center=torch.zeros_like(position),
        up=up_from_angles(azimuth, elevation),
        fovy=fovy.repeat_interleave(n_views),
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        camera_distance=distance,
        light_position=light.repeat_interleave(n_views, dim=0),
    )


def sample_azimuth(
    range_deg: Range, batch_size: int, sampling: str, generator: torch.Generator
) -> Float[Tensor, " b"]:
    """Azimuths over a range: ``stratified`` puts exactly one into each of ``batch_size`` parts."""
    unit = torch.rand(batch_size, generator=generator)
    if sampling == "stratified":
        unit = (unit + torch.arange(batch_size)) / batch_size
    return range_deg[0] + (range_deg[1] - range_deg[0]) * unit


def sample_elevation(
    range_deg: Range,
    batch_size: int,
    uniform_sphere_probability: float,
    generator: torch.Generator,
) -> Float[Tensor, " b"]:
    """Elevations uniform in degrees, or with the given probability uniform on the sphere."""
    pick = torch.rand(batch_size, generator=generator)
    unit = torch.rand(batch_size, generator=generator)
    low, high = range_deg
    in_degrees = low + (high - low) * unit
    sin_low, sin_high = math.sin(math.radians(low)), math.sin(math.radians(high))
    on_sphere = torch.rad2deg(torch.asin((sin_low + (sin_high - sin_low) * unit).clamp(-1.0, 1.0)))
    return torch.where(pick < uniform_sphere_probability, on_sphere, in_degrees)


def place_light(
    config: LightConfig, position: Float[Tensor, "b 3"], generator: torch.Generator
) -> Float[Tensor, "b 3"]:
    """Place one point light per camera, ``dreamfusion`` or ``magic3d`` (LightConfig)."""
    n = len(position)
    distance = _uniform(config.distance_range, n, generator)[:, None]
    if isinstance(config, DreamFusionLightConfig):
        direction = position + config.position_perturb * _randn3(n, generator)
        return distance * F.normalize(direction, dim=-1)
    toward = F.normalize(position, dim=-1)
    # Any axis not parallel to the direction starts the local frame.
    steep = toward[:, 2:].abs() > 0.99
    helper = torch.where(steep, toward.new_tensor([1.0, 0, 0]), toward.new_tensor([0, 0, 1.0]))
    side = F.normalize(torch.linalg.cross(helper, toward), dim=-1)
    other = torch.linalg.cross(toward, side)
    azimuth = _uniform((-math.pi, math.pi), n, generator)[:, None]
    elevation = _uniform((math.pi / 6, math.pi / 2), n, generator)[:, None]
    flat = azimuth.cos() * side + azimuth.sin() * other
    return distance * (elevation.cos() * flat + elevation.sin() * toward)


def open_range(full: Range, start: float, opening: float) -> Range:
    """Interpolate from the single value ``start`` (opening 0) to the range ``full`` (opening 1)."""
    return (start + opening * (full[0] - start), start + opening * (full[1] - start))


def milestone_at(config: CamerasConfig, fraction: float) -> ResolutionMilestone:
    """The image size and batch size in force at a fraction of the stage."""
    current = ResolutionMilestone(0.0, config.height, config.width, config.batch_size)
    for milestone in config.milestones:
        if fraction >= milestone.from_fraction:
            current = milestone
    return current


def _opening(fraction: float, until: float) -> float:
    """How far the view ranges are open: 0 at the start, 1 from ``until`` on."""
    return 1.0 if until <= 0.0 else min(1.0, fraction / until)


def _uniform(span: Range, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """Draw ``n`` numbers uniformly from ``span``."""
    return span[0] + (span[1] - span[0]) * torch.rand(n, generator=generator)


def _rand3(n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    return torch.rand(n, 3, generator=generator)


def _randn3(n: int, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    return torch.randn(n, 3, generator=generator)
