"""From a specification to a single object: one triangle soup with colours and patterns.

The object is centred and scaled so that its farthest vertex is at :data:`OBJECT_RADIUS` from the
origin. Two specifications that are equal build the same object.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from scenes.toybox.catalog import KINDS, PATTERNS
from scenes.toybox.palette import COLORS

__all__ = ["OBJECT_RADIUS", "ObjectSpec", "ToyObject", "build_object", "pattern_mask"]

OBJECT_RADIUS = 0.85


@dataclass(frozen=True)
class ObjectSpec:
    """What an object is: kind, colour, pattern, and the seed of its individual shape."""

    kind: str
    color: str
    pattern: str = "plain"
    individual: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("kind", self.kind, KINDS),
            ("color", self.color, COLORS),
            ("pattern", self.pattern, PATTERNS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"{name} {value!r} is not in the toybox; expected one of {', '.join(allowed)}."
                )


@dataclass(frozen=True)
class ToyObject:
    """Geometry and surface of an object.

    Attributes:
        vertices: ``[V, 3]``; normals: ``[V, 3]`` unit; faces: ``[F, 3]`` int64.
        face_color: ``[F, 3]`` RGB of each face without the pattern.
        face_second: ``[F, 3]`` RGB where the pattern is drawn.
        face_patterned: ``[F]`` bool, faces of the main parts.
        pattern: one of ``PATTERNS``.
        keypoints: named part centres, ``{name: [3]}``.
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    face_color: np.ndarray
    face_second: np.ndarray
    face_patterned: np.ndarray
    pattern: str
    keypoints: dict[str, np.ndarray]


def second_color(color: str) -> tuple[float, float, float]:
    """The colour of stripes, dots and checks: white, or dark grey on white."""
    return (0.35, 0.35, 0.38) if color == "white" else (0.95, 0.95, 0.95)


def pattern_mask(pattern: str, positions: np.ndarray) -> np.ndarray:
    """Where the second colour shows. positions ``[N, 3]`` in object space -> bool ``[N]``."""
    if pattern == "plain":
        return np.zeros(len(positions), dtype=bool)
    if pattern == "striped":
        return np.mod(positions[:, 2] / 0.3, 1.0) < 0.36
    if pattern == "checked":
        return np.floor((positions + 10.0) / 0.24).astype(np.int64).sum(1) % 2 == 0
    period = 0.34
    cell = np.floor(positions / period)
    centre = (cell + 0.5) * period
    return np.linalg.norm(positions - centre, axis=1) < 0.34 * period


def build_object(spec: ObjectSpec) -> ToyObject:
    """Build the individual that ``spec`` describes."""
    digest = hashlib.sha256(f"{spec.kind}/{spec.individual}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    parts = KINDS[spec.kind].build(rng)
    offsets = np.cumsum([0] + [len(p.vertices) for p in parts[:-1]])
    vertices = np.concatenate([p.vertices for p in parts])
    main = COLORS[spec.color]
    face_counts = [len(p.faces) for p in parts]
    colors = np.array([main if p.color is None else p.color for p in parts])
    centre = (vertices.min(0) + vertices.max(0)) / 2
    scale = OBJECT_RADIUS / np.linalg.norm(vertices - centre, axis=1).max()
    keypoints = {
        p.name: ((p.vertices.min(0) + p.vertices.max(0)) / 2 - centre) * scale
        for p in parts
        if p.name
    }
    face_color = np.repeat(colors, face_counts, axis=0)
    return ToyObject(
        vertices=(vertices - centre) * scale,
        normals=np.concatenate([p.normals for p in parts]),
        faces=np.concatenate([p.faces + o for p, o in zip(parts, offsets)]),
        face_color=face_color,
        face_second=np.broadcast_to(second_color(spec.color), face_color.shape),
        face_patterned=np.repeat([p.color is None for p in parts], face_counts),
        pattern=spec.pattern,
        keypoints=keypoints,
    )
