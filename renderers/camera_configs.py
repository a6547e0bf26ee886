"""Configuration of camera samplers and lights, importable without torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "CamerasConfig",
    "DreamFusionLightConfig",
    "LightConfig",
    "Magic3DLightConfig",
    "MultiViewCamerasConfig",
    "RandomCamerasConfig",
    "ResolutionMilestone",
    "check_between",
    "check_positive",
    "check_range",
]


def check_range(owner: str, name: str, span: tuple[float, float], low: float, high: float) -> None:
    """Reject ranges that are reversed or leave [low, high]."""
    if not low <= span[0] <= span[1] <= high:
        raise ValueError(
            f"{owner}.{name} is {list(span)}, expected two ascending numbers between {low:g} and "
            f"{high:g}. Write it as [smallest, largest]."
        )


def check_positive(owner: str, **values: int) -> None:
    """Reject counts and sizes below one."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{owner}.{name} is {value}, expected at least 1. Set a larger value.")


def check_between(owner: str, low: float, high: float, **values: float) -> None:
    """Reject numbers outside [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(
                f"{owner}.{name} is {value}, expected a number from {low:g} to {high:g}. "
                "Set a value in that range."
            )


@dataclass(frozen=True)
class ResolutionMilestone:
    """Image and batch size from one point of the stage on."""

    from_fraction: float
    """Progress of the stage (0 to 1) at which this milestone starts."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    batch_size: int
    """Views per step."""

    def __post_init__(self) -> None:
        """Check start and sizes."""
        check_between("milestones", 0.0, 1.0, from_fraction=self.from_fraction)
        check_positive(
            "milestones", height=self.height, width=self.width, batch_size=self.batch_size
        )


def check_ascending(milestones: tuple[ResolutionMilestone, ...]) -> None:
    """Reject milestones that are out of order, of which some would never hold."""
    starts = [milestone.from_fraction for milestone in milestones]
    if any(later <= earlier for earlier, later in itertools.pairwise(starts)):
        raise ValueError(
            f"cameras.milestones start at {starts}, expected ascending from_fraction. Sort them."
        )


@dataclass(frozen=True)
class DreamFusionLightConfig:
    """Point light near the camera direction (DreamFusion, arXiv 2209.14988, section 3.1)."""

    kind: Literal["dreamfusion"] = "dreamfusion"
    """Tag of this choice."""
    distance_range: tuple[float, float] = (0.8, 1.5)
    """Distance of the light from the origin, world units."""
    position_perturb: float = 1.0
    """Standard deviation added to the camera position before normalising, world units."""


@dataclass(frozen=True)
class Magic3DLightConfig:
    """Point light within 60 degrees of the camera direction (Magic3D, arXiv 2211.10440)."""

    kind: Literal["magic3d"] = "magic3d"
    """Tag of this choice."""
    distance_range: tuple[float, float] = (0.8, 1.5)
    """Distance of the light from the origin, world units."""


LightConfig = DreamFusionLightConfig | Magic3DLightConfig


@dataclass(frozen=True)
class RandomCamerasConfig:
    """Independent random views around the object (defaults: threestudio's DreamFusion preset)."""

    kind: Literal["random"] = "random"
    """Tag of this choice."""
    batch_size: int = 4
    """Views per step."""
    height: int = 64
    """Image height in pixels."""
    width: int = 64
    """Image width in pixels."""
    distance_range: tuple[float, float] = (1.5, 2.0)
    """Camera distance from the origin, world units."""
    fovy_deg_range: tuple[float, float] = (40.0, 70.0)
    """Vertical field of view, degrees."""
    azimuth_deg_range: tuple[float, float] = (-180.0, 180.0)
    """Azimuth, degrees; 0 is the front."""
    elevation_deg_range: tuple[float, float] = (-10.0, 45.0)
    """Elevation, degrees; 90 is straight above."""
    azimuth_sampling: Literal["stratified", "independent"] = "stratified"
    """One view in each part of the azimuth range, or each view anywhere."""
    uniform_sphere_probability: float = 0.5
    """Probability that an elevation is uniform on the sphere, not in degrees."""
    camera_perturb: float = 0.1
    """Half width of the uniform shift of the camera position, world units."""
    center_perturb: float = 0.2
    """Standard deviation of the look-at point, world units."""
    up_perturb: float = 0.02
    """Standard deviation of the up vector."""
    light: LightConfig = field(default_factory=DreamFusionLightConfig)
    """Placement of the point light."""
    progressive_until: float = 0.0
    """Stage fraction at which azimuth and elevation ranges are fully open; 0 opens them at once."""
    progressive_elevation_deg: float = 15.0
    """Elevation the progressive range starts from, degrees (its azimuth starts at the front)."""
    milestones: tuple[ResolutionMilestone, ...] = ()
    """Later image and batch sizes, by ascending from_fraction."""

    def __post_init__(self) -> None:
        """Check ranges and sizes."""
        name = "cameras"
        check_between(name, 0.0, 1.0, uniform_sphere_probability=self.uniform_sphere_probability)
        check_positive(name, batch_size=self.batch_size, height=self.height, width=self.width)
        check_range(name, "distance_range", self.distance_range, 1e-3, 1e4)
        check_range(name, "fovy_deg_range", self.fovy_deg_range, 1.0, 170.0)
        check_range(name, "azimuth_deg_range", self.azimuth_deg_range, -360.0, 360.0)
        check_range(name, "elevation_deg_range", self.elevation_deg_range, -90.0, 90.0)
        check_ascending(self.milestones)


@dataclass(frozen=True)
class MultiViewCamerasConfig:
    """Groups of views around one random start (MVDream, arXiv 2308.16512, section 3.2)."""

    kind: Literal["multiview"] = "multiview"
    """Tag of this choice."""
    n_views: int = 4
    """Views of one group, equally spaced in azimuth."""
    batch_size: int = 4
    """Views per step, a multiple of n_views."""
    height: int = 64
    """Image height in pixels."""
    width: int = 64
    """Image width in pixels."""
    relative_distance_range: tuple[float, float] = (0.8, 1.0)
    """Camera distance times tan(fovy / 2): constant apparent size for any field of view."""
    fovy_deg_range: tuple[float, float] = (15.0, 60.0)
    """Vertical field of view of a group, degrees."""
    elevation_deg_range: tuple[float, float] = (0.0, 30.0)
    """Elevation of a group, degrees."""
    light: LightConfig = field(default_factory=DreamFusionLightConfig)
    """Placement of the point light, one for each group."""
    progressive_until: float = 0.0
    """Stage fraction at which the elevation range is fully open; 0 opens it at once."""
    progressive_elevation_deg: float = 15.0
    """Elevation the progressive range starts from, degrees."""
    milestones: tuple[ResolutionMilestone, ...] = ()
    """Later image and batch sizes, by ascending from_fraction."""

    def __post_init__(self) -> None:
        """Check ranges, sizes and that every batch holds whole groups."""
        name = "cameras"
        check_positive(
            name,
            n_views=self.n_views,
            batch_size=self.batch_size,
            height=self.height,
            width=self.width,
        )
        check_range(name, "relative_distance_range", self.relative_distance_range, 1e-3, 1e3)
        check_range(name, "fovy_deg_range", self.fovy_deg_range, 1.0, 170.0)
        check_range(name, "elevation_deg_range", self.elevation_deg_range, -90.0, 90.0)
        check_ascending(self.milestones)
        for size in (self.batch_size, *(m.batch_size for m in self.milestones)):
            if size % self.n_views:
                raise ValueError(
                    f"cameras.batch_size is {size}, expected a multiple of n_views "
                    f"({self.n_views}). Set batch_size to whole groups of views."
                )


CamerasConfig = RandomCamerasConfig | MultiViewCamerasConfig
