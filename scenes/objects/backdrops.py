"""Rooms to photograph an object in: a floor with its shadow, and a wall.

Simple on purpose, but varied in what a personalized model must not learn: colours, patterns, the
direction and tint of the light, and where the shadow falls.

    room = random_room(rng, mesh)
    background = room.image(cameras)        # [b, h, w, 3]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from renderers.cameras import Cameras
from scenes.objects.mesh import ObjectMesh
from scenes.objects.render import Lighting

__all__ = ["Room", "random_room"]

PATTERNS = ("plain", "planks", "tiles", "carpet")
SHADOW_CELLS, SHADOW_HALF_WIDTH, SHADOW_BLUR = 96, 2.4, 1.6
SHADOW_POINTS = 20_000
SUPERSAMPLE = 3


@dataclass(frozen=True)
class Room:
    """A floor, a wall and a light.

    Attributes:
        floor_z: height of the floor.
        pattern: one of plain, planks, tiles, carpet.
        floor, floor_second, wall, wall_second: RGB; the second floor colour is the pattern's, that
            of the wall its upper end.
        heading: direction of planks and tiles in radians.
        cell: width of planks and tiles.
        depth: distance of the wall.
        noise: ``[64, 64]`` in -1..1, roughness of the floor.
        shadow: ``[96, 96]`` in 0..1 over the middle of the floor.
        light: for the object.
    """

    floor_z: float
    pattern: str
    floor: np.ndarray
    floor_second: np.ndarray
    wall: np.ndarray
    wall_second: np.ndarray
    heading: float
    cell: float
    depth: float
    noise: np.ndarray
    shadow: np.ndarray
    light: Lighting

    def image(self, cameras: Cameras) -> np.ndarray:
        """What the cameras see behind the object, ``[b, h, w, 3]`` float32 in 0..1."""
        s, b, h, w = SUPERSAMPLE, len(cameras), cameras.height, cameras.width
        origin, direction = (r.numpy() for r in cameras.resized(h * s, w * s).rays())
        down = np.minimum(direction[..., 2], -1e-6)
        distance = (self.floor_z - origin[..., 2]) / down
        at = origin[..., :2] + distance[..., None] * direction[..., :2]
        on_floor = (direction[..., 2] < -1e-6) & (np.linalg.norm(at, axis=-1) < self.depth)
        up = np.clip(direction[..., 2:] * 1.2 + 0.5, 0.0, 1.0)
        image = self.wall * (1 - up) + self.wall_second * up
        image[on_floor] = self._floor(at[on_floor])
        image = image * np.array(self.light.tint)
        mean = image.reshape(b, h, s, w, s, 3).mean((2, 4))
        return np.clip(mean, 0.0, 1.0).astype(np.float32)

    def _floor(self, at: np.ndarray) -> np.ndarray:
        c, s = np.cos(self.heading), np.sin(self.heading)
        along, across = at @ (c, s), at @ (-s, c)
        second = np.zeros(len(at))
        if self.pattern == "planks":
            plank = np.floor(across / self.cell)
            second = 0.5 + 0.5 * np.sin(plank * 12.9898)
            second += 0.5 * ((across / self.cell) % 1.0 < 0.04)
        elif self.pattern == "tiles":
            second = (np.floor(along / self.cell) + np.floor(across / self.cell)) % 2
        rough = _lookup(self.noise, at * (9.0 if self.pattern == "carpet" else 3.0), wrap=True)
        color = self.floor + np.clip(second, 0, 1)[:, None] * (self.floor_second - self.floor)
        color = color * (1.0 + (0.14 if self.pattern == "carpet" else 0.06) * rough[:, None])
        cell = (at / SHADOW_HALF_WIDTH * 0.5 + 0.5) * SHADOW_CELLS - 0.5
        dark = _lookup(self.shadow, cell, wrap=False)
        key = self.light.key * self.light.key_direction[2]
        lit = self.light.ambient + self.light.sky + 0.5 * self.light.head
        return color * ((lit + key - (0.55 * lit + key) * 0.8 * dark) / (lit + key))[:, None]


def _lookup(image: np.ndarray, at: np.ndarray, *, wrap: bool) -> np.ndarray:
    mode = "grid-wrap" if wrap else "constant"
    return map_coordinates(image, at.T, order=1, mode=mode)


def _shadow(mesh: ObjectMesh, floor_z: float, to_light: np.ndarray) -> np.ndarray:
    """Where the floor is dark: points of the surface moved along the light to the floor."""
    a, b, c = (mesh.v_pos[mesh.t_pos_idx[:, k]].astype(np.float64) for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    rng = np.random.default_rng(0)
    face = rng.choice(len(area), SHADOW_POINTS, p=area / area.sum())
    u, v = rng.random((2, SHADOW_POINTS))
    u, v = np.where(u + v > 1, 1 - u, u)[:, None], np.where(u + v > 1, 1 - v, v)[:, None]
    point = a[face] + u * (b - a)[face] + v * (c - a)[face]
    at = point[:, :2] - to_light[:2] * ((point[:, 2] - floor_z) / to_light[2])[:, None]
    span = (-SHADOW_HALF_WIDTH, SHADOW_HALF_WIDTH)
    hits = np.histogram2d(at[:, 0], at[:, 1], SHADOW_CELLS, (span, span))[0]
    return gaussian_filter(np.minimum(hits, 1.0), SHADOW_BLUR)


def _color(rng: np.random.Generator) -> np.ndarray:
    """A wall or floor colour: mostly muted, sometimes strong."""
    if rng.random() < 0.75:
        return np.clip(rng.uniform(0.35, 0.92) + rng.uniform(-0.12, 0.12, 3), 0.0, 1.0)
    return rng.uniform(0.15, 0.9, 3)


def random_room(rng: np.random.Generator, mesh: ObjectMesh) -> Room:
    """A room for ``mesh``, which stands on its floor."""
    floor_z = float(mesh.v_pos[:, 2].min())
    azimuth, elevation = rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(38, 70))
    to_light = np.array(
        [
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ]
    )
    warmth = rng.uniform(-0.06, 0.06)
    light = Lighting(
        ambient=float(rng.uniform(0.38, 0.52)),
        head=float(rng.uniform(0.08, 0.2)),
        sky=float(rng.uniform(0.1, 0.2)),
        key=float(rng.uniform(0.2, 0.45)),
        key_direction=tuple(float(x) for x in to_light),
        tint=(1.0 + warmth, 1.0, 1.0 - warmth),
    )
    floor, wall = _color(rng), _color(rng)
    return Room(
        floor_z=floor_z,
        pattern=PATTERNS[int(rng.integers(len(PATTERNS)))],
        floor=floor,
        floor_second=np.clip(floor * rng.uniform(0.7, 1.25) + rng.uniform(-0.06, 0.06, 3), 0, 1),
        wall=wall,
        wall_second=np.clip(wall * rng.uniform(0.75, 1.2), 0, 1),
        heading=float(rng.uniform(0, np.pi)),
        cell=float(rng.uniform(0.25, 0.6)),
        depth=float(rng.uniform(5.0, 14.0)),
        noise=gaussian_filter(rng.normal(size=(64, 64)), 0.8, mode="wrap") * 2.0,
        shadow=_shadow(mesh, floor_z, to_light),
        light=light,
    )
