"""Building blocks of toybox objects: closed primitives with analytic, smooth normals.

Every primitive returns a :class:`Part` in object coordinates (+z up, +x is the front). Unit
primitives are cached, so an object costs a few affine transforms. ``color`` is an RGB triple in
0..1 (display-referred), or :data:`MAIN` for the surface that carries the object's own colour and
pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

__all__ = [
    "MAIN",
    "Part",
    "box",
    "capsule",
    "cone",
    "cylinder",
    "lathe",
    "plate",
    "prism",
    "ring",
    "sphere",
    "spin",
]

Color = tuple[float, float, float]
Vec3 = tuple[float, float, float]

MAIN: None = None
"""Marks a part that takes the object's colour and pattern."""

_SIDES = 28


@dataclass(frozen=True)
class Part:
    """A coloured piece of an object.

    Attributes:
        vertices: ``[V, 3]`` positions; normals: ``[V, 3]`` unit normals; faces: ``[F, 3]``.
        color: RGB in 0..1, or :data:`MAIN`.
        name: a named part's centre is one of the object's keypoints ("" has none).
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    color: Color | None
    name: str = ""

    def transformed(self, matrix: np.ndarray, offset: Sequence[float] = (0, 0, 0)) -> Part:
        """Apply ``x -> matrix @ x + offset``; normals follow by the inverse transpose."""
        vertices = self.vertices @ matrix.T + np.asarray(offset, dtype=np.float64)
        normals = self.normals @ np.linalg.inv(matrix)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        faces = self.faces if np.linalg.det(matrix) > 0 else self.faces[:, ::-1]
        return replace(self, vertices=vertices, normals=normals, faces=faces)

    def named(self, name: str) -> Part:
        """The same part as a keypoint of the object."""
        return replace(self, name=name)


def rotation(degrees: float, axis: str) -> np.ndarray:
    """Right-handed rotation matrix ``[3, 3]`` about the axis "x", "y" or "z"."""
    a = np.deg2rad(degrees)
    c, s = np.cos(a), np.sin(a)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    m = np.eye(3)
    m[i, i] = m[j, j] = c
    m[i, j], m[j, i] = -s, s
    return m


def _place(
    part: Part, size: Vec3, at: Vec3, turn: Sequence[tuple[float, str]], color: Color | None
) -> Part:
    matrix = np.diag(np.asarray(size, dtype=np.float64))
    for degrees, axis in turn:
        matrix = rotation(degrees, axis) @ matrix
    return replace(part, color=color).transformed(matrix, at)


def spin(part: Part, degrees: float, axis: str = "z") -> Part:
    """The part turned about an axis through the object's origin."""
    return part.transformed(rotation(degrees, axis))


@lru_cache(maxsize=256)
def _revolved(profile: tuple[tuple[float, float], ...], smooth: bool) -> Part:
    """Revolve (radius, height) points, bottom to top, about z; outward normals."""
    pts = np.asarray(profile, dtype=np.float64)
    seg = np.diff(pts, axis=0)
    seg_n = np.stack([seg[:, 1], -seg[:, 0]], 1)
    seg_n /= np.maximum(np.linalg.norm(seg_n, axis=1, keepdims=True), 1e-12)
    angle = np.linspace(0, 2 * np.pi, _SIDES, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    vertices, normals, faces = [], [], []
    for k in range(len(seg)):
        ends = (k, k + 1)
        for e in ends:
            n = seg_n[k]
            if smooth:
                around = seg_n[max(e - 1, 0) : e + 1]
                n = around.sum(0) / max(np.linalg.norm(around.sum(0)), 1e-12)
            r, z = pts[e]
            vertices.append(np.stack([r * cos, r * sin, np.full(_SIDES, z)], 1))
            normals.append(np.stack([n[0] * cos, n[0] * sin, np.full(_SIDES, n[1])], 1))
        a = 2 * k * _SIDES + np.arange(_SIDES)
        b = 2 * k * _SIDES + (np.arange(_SIDES) + 1) % _SIDES
        quads = (np.stack([a, b, b + _SIDES], 1), np.stack([a, b + _SIDES, a + _SIDES], 1))
        keep = (pts[k, 0] > 0, pts[k + 1, 0] > 0)
        faces += [q for q, used in zip(quads, keep) if used]
    return Part(np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces), MAIN)


@lru_cache(maxsize=1)
def _sphere_profile() -> tuple[tuple[float, float], ...]:
    lat = np.linspace(-np.pi / 2, np.pi / 2, 13)
    radius = np.cos(lat)
    radius[[0, -1]] = 0
    return tuple((float(r), float(z)) for r, z in zip(radius, np.sin(lat)))


def sphere(
    radius: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    scale: Vec3 = (1, 1, 1),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A sphere, or an ellipsoid by ``scale``."""
    size = (radius * scale[0], radius * scale[1], radius * scale[2])
    return _place(_revolved(_sphere_profile(), True), size, at, turn, color)


def cylinder(
    radius: float,
    height: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    top: float | None = None,
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A cylinder centred at ``at``; ``top`` is the upper radius of a tapered one."""
    ratio = 1.0 if top is None else top / radius
    unit = _revolved(((0.0, -0.5), (1.0, -0.5), (ratio, 0.5), (0.0, 0.5)), False)
    return _place(unit, (radius, radius, height), at, turn, color)


def cone(
    radius: float,
    height: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A cone whose base centre is at ``at`` and whose apex points to +z before ``turn``."""
    unit = _revolved(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)), False)
    return _place(unit, (radius, radius, height), at, turn, color)


def lathe(
    profile: Sequence[tuple[float, float]],
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A smooth surface of revolution through (radius, height) points, bottom to top."""
    rounded = tuple((round(float(r), 3), round(float(z), 3)) for r, z in profile)
    return _place(_revolved(rounded, True), (1, 1, 1), at, turn, color)


@lru_cache(maxsize=64)
def _unit_ring(ratio: float) -> Part:
    n, m = _SIDES, 14
    u = np.linspace(0, 2 * np.pi, n, endpoint=False)[:, None]
    v = np.linspace(0, 2 * np.pi, m, endpoint=False)[None]
    normals = np.stack([np.cos(u) * np.cos(v), np.sin(u) * np.cos(v), np.sin(v) + 0 * u], -1)
    centre = np.stack([np.cos(u) + 0 * v, np.sin(u) + 0 * v, 0 * u + 0 * v], -1)
    i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
    a, b = i * m + j, (i + 1) % n * m + j
    c, d = (i + 1) % n * m + (j + 1) % m, i * m + (j + 1) % m
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    vertices = (centre + ratio * normals).reshape(-1, 3)
    return Part(vertices, normals.reshape(-1, 3), faces, MAIN)


def ring(
    radius: float,
    thickness: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A torus in the xy plane with the given tube radius ``thickness``."""
    unit = _unit_ring(round(thickness / radius, 3))
    return _place(unit, (radius, radius, radius), at, turn, color)


@lru_cache(maxsize=64)
def _unit_prism(polygon: tuple[tuple[float, float], ...]) -> Part:
    pts = np.asarray(polygon, dtype=np.float64)
    n = len(pts)
    area = np.sum(pts[:, 0] * np.roll(pts[:, 1], -1) - pts[:, 1] * np.roll(pts[:, 0], -1))
    pts = pts if area > 0 else pts[::-1]
    nxt = np.roll(pts, -1, 0)
    edge = nxt - pts
    outward = np.stack([edge[:, 1], -edge[:, 0]], 1)
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    vertices, normals, faces = [], [], []
    for z in (-0.5, 0.5):
        start = sum(len(v) for v in vertices)
        ringed = np.concatenate([pts, pts.mean(0, keepdims=True)])
        vertices.append(np.concatenate([ringed, np.full((n + 1, 1), z)], 1))
        normals.append(np.tile((0.0, 0.0, np.sign(z)), (n + 1, 1)))
        a, b = np.arange(n), (np.arange(n) + 1) % n
        fan = np.stack([np.full(n, n), a, b] if z > 0 else [np.full(n, n), b, a], 1)
        faces.append(fan + start)
    start = 2 * (n + 1)
    low, high = np.full((n, 1), -0.5), np.full((n, 1), 0.5)
    corners = ((pts, low), (nxt, low), (nxt, high), (pts, high))
    vertices += [np.concatenate(c, 1) for c in corners]
    normals += [np.concatenate([outward, np.zeros((n, 1))], 1)] * 4
    k = start + np.arange(n)
    faces += [np.stack([k, k + n, k + 2 * n], 1), np.stack([k, k + 2 * n, k + 3 * n], 1)]
    return Part(np.concatenate(vertices), np.concatenate(normals), np.concatenate(faces), MAIN)


def prism(
    polygon: Sequence[tuple[float, float]],
    height: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """Extrude a polygon that is star-shaped about its mean, along z."""
    unit = _unit_prism(tuple((round(float(x), 3), round(float(y), 3)) for x, y in polygon))
    return _place(unit, (1, 1, height), at, turn, color)


def plate(
    polygon: Sequence[tuple[float, float]],
    thickness: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
) -> Part:
    """A polygon given in (x, z), standing upright and extruded along y."""
    upright = ((90, "x"),)
    return prism(polygon, thickness, color, at=at, turn=upright)


def box(
    size_x: float,
    size_y: float,
    size_z: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A box centred at ``at``."""
    unit = _unit_prism(((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)))
    return _place(unit, (size_x, size_y, size_z), at, turn, color)


def capsule(
    radius: float,
    length: float,
    color: Color | None,
    *,
    at: Vec3 = (0, 0, 0),
    turn: Sequence[tuple[float, str]] = (),
) -> Part:
    """A cylinder of ``length`` along z with round ends, centred at ``at``."""
    arc = np.linspace(0, np.pi / 2, 7)
    high = [(radius * np.cos(a), length / 2 + radius * np.sin(a)) for a in arc]
    high[-1] = (0.0, length / 2 + radius)
    profile = [(r, -z) for r, z in reversed(high)] + high
    return lathe(profile, color, at=at, turn=turn)
