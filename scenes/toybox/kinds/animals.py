"""Animals. Each function returns the parts of one individual; +x is the front."""

from __future__ import annotations

import numpy as np

from scenes.toybox.palette import COLORS, CREAM, DARK, SNOW
from scenes.toybox.parts import MAIN, Part, capsule, cone, cylinder, plate, sphere

__all__ = ["duck", "fish", "penguin", "rabbit", "turtle"]

_ORANGE = COLORS["orange"]


def _eyes(x: float, y: float, z: float, size: float = 0.06) -> list[Part]:
    return [sphere(size, DARK, at=(x, s * y, z)) for s in (-1, 1)]


def duck(rng: np.random.Generator) -> list[Part]:
    """A bathtub duck."""
    head = rng.uniform(0.32, 0.38)
    return [
        sphere(0.58, MAIN, scale=(1.25, 1, 0.82), at=(0, 0, -0.2)).named("body"),
        sphere(head, MAIN, at=(0.45, 0, 0.4)).named("head"),
        sphere(0.17, _ORANGE, scale=(1.3, 0.9, 0.5), at=(0.45 + head, 0, 0.34)).named("beak"),
        cone(0.22, 0.5, MAIN, at=(-0.52, 0, -0.12), turn=((-55, "y"),)).named("tail"),
        *[
            sphere(0.3, MAIN, scale=(1.1, 0.35, 0.6), at=(-0.1, s * 0.54, -0.1), turn=((15, "y"),))
            for s in (-1, 1)
        ],
        *_eyes(0.45 + 0.75 * head, 0.2, 0.54, 0.07),
    ]


def fish(rng: np.random.Generator) -> list[Part]:
    """A round aquarium fish."""
    height = rng.uniform(0.75, 0.9)
    fin = ((-0.15, 0.0), (0.2, 0.0), (-0.2, 0.38))
    tail = ((0.0, 0.0), (-0.45, -0.42), (-0.3, 0.0), (-0.45, 0.42))
    return [
        sphere(0.65, MAIN, scale=(1.2, 0.6, height)).named("body"),
        plate(tail, 0.1, MAIN, at=(-0.62, 0, 0)).named("tail"),
        plate(fin, 0.08, MAIN, at=(0, 0, 0.42)).named("fin"),
        plate([(x, -z) for x, z in fin], 0.08, MAIN, at=(0, 0, -0.42)),
        sphere(0.11, COLORS["pink"], scale=(0.6, 1, 0.5), at=(0.76, 0, -0.1)).named("mouth"),
        *[sphere(0.14, SNOW, at=(0.44, s * 0.27, 0.17)) for s in (-1, 1)],
        *[sphere(0.075, DARK, at=(0.5, s * 0.35, 0.19)) for s in (-1, 1)],
    ]


def rabbit(rng: np.random.Generator) -> list[Part]:
    """A sitting rabbit with long ears."""
    ear = rng.uniform(0.42, 0.58)
    parts = [
        sphere(0.45, MAIN, scale=(1, 0.9, 1.1), at=(-0.05, 0, -0.42)).named("body"),
        sphere(0.34, MAIN, at=(0.18, 0, 0.22)).named("head"),
        sphere(0.17, SNOW, at=(-0.5, 0, -0.55)).named("tail"),
        sphere(0.26, SNOW, scale=(0.6, 0.9, 1.1), at=(0.27, 0, -0.42)),
        sphere(0.06, COLORS["pink"], at=(0.52, 0, 0.2)).named("nose"),
        *_eyes(0.45, 0.15, 0.32),
    ]
    for s in (-1, 1):
        parts += [
            capsule(0.1, ear, MAIN, at=(0.1, s * 0.16, 0.52 + ear / 2), turn=((s * -8, "x"),)),
            sphere(0.15, MAIN, scale=(1.6, 0.9, 0.7), at=(0.3, s * 0.26, -0.82)),
        ]
    return parts


def penguin(rng: np.random.Generator) -> list[Part]:
    """A standing penguin; its coat carries the colour."""
    width = rng.uniform(0.9, 1.05)
    parts = [
        sphere(0.52, MAIN, scale=(0.85, width, 1.35), at=(0, 0, -0.1)).named("body"),
        sphere(0.45, SNOW, scale=(0.7, 0.8 * width, 1.25), at=(0.19, 0, -0.2)),
        sphere(0.34, MAIN, at=(0, 0, 0.7)).named("head"),
        cone(0.11, 0.3, _ORANGE, at=(0.28, 0, 0.68), turn=((90, "y"),)).named("beak"),
        *[sphere(0.085, SNOW, at=(0.27, s * 0.14, 0.82)) for s in (-1, 1)],
        *[sphere(0.05, DARK, at=(0.34, s * 0.14, 0.83)) for s in (-1, 1)],
    ]
    for s in (-1, 1):
        wing = sphere(
            0.4, MAIN, scale=(0.4, 0.25, 1), at=(0, s * 0.55, -0.05), turn=((s * 18, "x"),)
        )
        foot = sphere(0.17, _ORANGE, scale=(1.5, 1, 0.45), at=(0.2, s * 0.24, -0.82))
        parts += [wing, foot]
    return parts


def turtle(rng: np.random.Generator) -> list[Part]:
    """A turtle; its shell carries the colour."""
    skin = (0.55, 0.66, 0.35)
    dome = rng.uniform(0.55, 0.7)
    parts = [
        sphere(0.68, MAIN, scale=(1.1, 0.95, dome)).named("shell"),
        cylinder(0.72, 0.14, CREAM, at=(0, 0, -0.06)),
        capsule(0.13, 0.3, skin, at=(0.75, 0, 0.08), turn=((60, "y"),)),
        sphere(0.22, skin, at=(0.95, 0, 0.22)).named("head"),
        cone(0.1, 0.35, skin, at=(-0.66, 0, -0.08), turn=((-100, "y"),)).named("tail"),
        *_eyes(1.08, 0.13, 0.32, 0.05),
    ]
    for x in (-0.42, 0.42):
        for s in (-1, 1):
            parts.append(capsule(0.14, 0.22, skin, at=(x, s * 0.5, -0.25), turn=((s * 25, "x"),)))
    return parts
