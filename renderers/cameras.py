"""Pinhole cameras: poses, rays and clip-space matrices under one set of conventions.

World right-handed with +z up, azimuth from +x towards +y, ``c2w`` with OpenGL axes (+x right,
+y up, -z forward) and det(R) = +1. The y row of ``mvp`` is negated, so that a rasteriser whose
first row is ndc y = -1 writes the top row of the image there (docs/conventions.md).

Usage::

    cameras = orbit_cameras(8, elevation_deg=15.0, distance=2.6, fovy_deg=40.0, height=64, width=64)
    rays_o, rays_d = cameras.rays()
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.camera_configs import CamerasConfig, MultiViewCamerasConfig
from renderers.camera_sampling import draw_multiview, draw_random, milestone_at
from renderers.errors import ShapeError
from renderers.poses import directions_from_angles, look_at, up_from_angles

__all__ = ["Cameras", "orbit_cameras", "sample_cameras"]


@dataclass(frozen=True)
class Cameras:
    """A batch of ``b`` pinhole cameras that share one image size.

    ``azimuth_deg``, ``elevation_deg`` and ``camera_distance`` are the nominal pose: sampled
    perturbations move ``c2w`` but not these labels, which is what view prompts should see.
    """

    c2w: Float[Tensor, "b 4 4"]
    """Camera-to-world transforms, OpenGL axes."""
    fovy: Float[Tensor, " b"]
    """Vertical field of view in radians."""
    azimuth_deg: Float[Tensor, " b"]
    """Nominal azimuth in degrees, in -180..180 for sampled cameras."""
    elevation_deg: Float[Tensor, " b"]
    """Nominal elevation in degrees."""
    camera_distance: Float[Tensor, " b"]
    """Nominal distance of the camera from the origin, world units."""
    light_position: Float[Tensor, "b 3"]
    """Point light of each view, world coordinates."""
    height: int
    """Image height in pixels."""
    width: int
    """Image width in pixels."""
    within: Float[Tensor, "b 2 3"] | None = None
    """Low and high corner of the box that a camera sees alone; None for the whole scene."""

    def __post_init__(self) -> None:
        """Reject batches whose parts disagree on the number of cameras."""
        size = self.c2w.shape[0]
        shapes = {
            "c2w": (size, 4, 4),
            "fovy": (size,),
            "azimuth_deg": (size,),
            "elevation_deg": (size,),
            "camera_distance": (size,),
            "light_position": (size, 3),
        }
        if self.within is not None:
            shapes["within"] = (size, 2, 3)
        for name, expected in shapes.items():
            actual = tuple(getattr(self, name).shape)
            if actual != expected:
                raise ShapeError(
                    f"Cameras.{name} has shape {actual}, expected {expected}. "
                    "Give every part one row per camera."
                )
        if self.height < 1 or self.width < 1:
            raise ShapeError(
                f"Cameras have image size {self.height}x{self.width}, expected at least 1x1. "
                "Set height and width to positive numbers."
            )

    def __len__(self) -> int:
        """Return the number of cameras."""
        return self.c2w.shape[0]

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Cameras:
        """Select cameras; an ``int`` gives a batch of one."""
        if isinstance(index, int):
            index = [index]
        return self._map(lambda tensor: tensor[index])

    @property
    def position(self) -> Float[Tensor, "b 3"]:
        """Camera centres in world coordinates."""
        return self.c2w[:, :3, 3]

    def to(self, target: torch.device | torch.dtype | str) -> Cameras:
        """Move to a device, or convert to a floating point type."""
        return self._map(lambda tensor: tensor.to(target))

    def resized(self, height: int, width: int) -> Cameras:
        """The same views at another image size (the vertical field of view is kept)."""
        return dataclasses.replace(self, height=height, width=width)

    def around(
        self, center: Float[Tensor, " 3"], scale: float, within: Float[Tensor, "2 3"]
    ) -> Cameras:
        """The same views of a part of the scene instead of all of it; their labels stay.

        Args:
            center: what stands in the place of the origin.
            scale: length of what was 1 in the views before.
            within: low and high corner of the part; the cameras see nothing else.
        """
        center, c2w = center.to(self.c2w), self.c2w.clone()
        c2w[:, :3, 3] = center + scale * self.position
        return dataclasses.replace(
            self,
            c2w=c2w,
            light_position=center + scale * self.light_position,
            within=within.to(self.c2w).expand(len(self), 2, 3),
        )

    def rays(self) -> tuple[Float[Tensor, "b h w 3"], Float[Tensor, "b h w 3"]]:
        """Origins and unit directions through all pixel centres, row 0 at the top."""
        options = {"device": self.c2w.device, "dtype": self.c2w.dtype}
        cols = torch.arange(self.width, **options) + 0.5 - 0.5 * self.width
        rows = torch.arange(self.height, **options) + 0.5 - 0.5 * self.height
        focal = (0.5 * self.height / torch.tan(0.5 * self.fovy))[:, None, None]
        shape = (len(self), self.height, self.width)
        local = torch.stack(
            [
                (cols[None, None, :] / focal).expand(shape),
                (-rows[None, :, None] / focal).expand(shape),
                cols.new_full(shape, -1.0),
            ],
            dim=-1,
        )
        world = torch.einsum("bij,bhwj->bhwi", self.c2w[:, :3, :3], local)
        return self.position[:, None, None].expand(*shape, 3), F.normalize(world, dim=-1)

    def mvp(self, near: float = 0.01, far: float = 100.0) -> Float[Tensor, "b 4 4"]:
        """World to clip space; ``col = (x/w + 1)/2 W`` and ``row = (y/w + 1)/2 H``."""
        half = torch.tan(0.5 * self.fovy)
        projection = self.c2w.new_zeros(len(self), 4, 4)
        projection[:, 0, 0] = self.height / (self.width * half)
        projection[:, 1, 1] = -1.0 / half
        projection[:, 2, 2] = -(far + near) / (far - near)
        projection[:, 2, 3] = -2.0 * far * near / (far - near)
        projection[:, 3, 2] = -1.0
        return projection @ self.w2c()

    def w2c(self) -> Float[Tensor, "b 4 4"]:
        """World-to-camera transforms (inverse of the rigid ``c2w``)."""
        rotation = self.c2w[:, :3, :3].transpose(1, 2)
        w2c = torch.zeros_like(self.c2w)
        w2c[:, :3, :3] = rotation
        w2c[:, :3, 3] = -(rotation @ self.position[:, :, None])[:, :, 0]
        w2c[:, 3, 3] = 1.0
        return w2c

    def _map(self, function) -> Cameras:
        """Apply ``function`` to every tensor field."""
        tensors = {
            field.name: function(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


def sample_cameras(
    config: CamerasConfig, generator: torch.Generator, *, fraction: float
) -> Cameras:
    """Draw the cameras of one training step.

    Args:
        config: ``random`` (independent views) or ``multiview`` (groups of orthogonal views).
        generator: CPU generator; every random number comes from it.
        fraction: progress of the stage, 0 to 1, for progressive ranges and resolution milestones.
    """
    size = milestone_at(config, fraction)
    draw_views = draw_multiview if isinstance(config, MultiViewCamerasConfig) else draw_random
    draw = draw_views(config, size.batch_size, generator, fraction=fraction)
    return Cameras(
        c2w=look_at(draw.position, draw.center, draw.up),
        fovy=draw.fovy,
        azimuth_deg=draw.azimuth_deg,
        elevation_deg=draw.elevation_deg,
        camera_distance=draw.camera_distance,
        light_position=draw.light_position,
        height=size.height,
        width=size.width,
    )


def orbit_cameras(
    n_views: int,
    *,
    elevation_deg: float,
    distance: float,
    fovy_deg: float,
    height: int,
    width: int,
    azimuth_start_deg: float = 0.0,
) -> Cameras:
    """``n_views`` cameras equally spaced around +z, the first at ``azimuth_start_deg``.

    The light stands at the camera, which shows a shaded object without cast-off dark sides.
    Azimuths grow from the start without wrapping, so a turntable can be cut and joined.
    """
    azimuth = azimuth_start_deg + torch.arange(n_views, dtype=torch.float32) * (360.0 / n_views)
    elevation = torch.full((n_views,), float(elevation_deg))
    position = distance * directions_from_angles(azimuth, elevation)
    up = up_from_angles(azimuth, elevation)
    return Cameras(
        c2w=look_at(position, torch.zeros_like(position), up),
        fovy=torch.full((n_views,), math.radians(fovy_deg)),
        azimuth_deg=azimuth,
        elevation_deg=elevation,
        camera_distance=torch.full((n_views,), float(distance)),
        light_position=position,
        height=height,
        width=width,
    )
