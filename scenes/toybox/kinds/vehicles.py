"""Vehicles. Each function returns the parts of one individual; +x is the front."""

from __future__ import annotations

import numpy as np

from scenes.toybox.palette import COLORS, DARK, GLASS, GOLD, GREY, SNOW, WOOD
from scenes.toybox.parts import MAIN, Part, box, capsule, cone, cylinder, lathe, plate, sphere, spin

__all__ = ["airplane", "car", "rocket", "sailboat", "train"]


def _wheel(x: float, y: float, z: float, radius: float, width: float = 0.16) -> list[Part]:
    side = ((90, "x"),)
    return [
        cylinder(radius, width, DARK, at=(x, y, z), turn=side),
        cylinder(radius * 0.45, width + 0.03, GREY, at=(x, y, z), turn=side),
    ]


def car(rng: np.random.Generator) -> list[Part]:
    """A small car."""
    cabin = rng.uniform(0.32, 0.42)
    profile = ((-0.5, 0), (0.42, 0), (0.2, cabin), (-0.42, cabin))
    parts = [
        box(1.7, 0.8, 0.36, MAIN).named("body"),
        plate(profile, 0.66, GLASS, at=(-0.12, 0, 0.18)).named("cabin"),
        box(0.62, 0.68, 0.07, MAIN, at=(-0.23, 0, 0.2 + cabin)),
        *[sphere(0.085, COLORS["yellow"], at=(0.85, s * 0.27, 0.03)) for s in (-1, 1)],
        *[box(0.04, 0.16, 0.09, COLORS["red"], at=(-0.85, s * 0.27, 0.04)) for s in (-1, 1)],
    ]
    for x in (-0.52, 0.52):
        for s in (-1, 1):
            parts += _wheel(x, s * 0.4, -0.2, 0.23)
    return parts


def train(rng: np.random.Generator) -> list[Part]:
    """A steam engine."""
    chimney = rng.uniform(0.3, 0.42)
    parts = [
        cylinder(0.34, 1.0, MAIN, at=(0.28, 0, 0.18), turn=((90, "y"),)).named("boiler"),
        cylinder(0.36, 0.1, DARK, at=(0.8, 0, 0.18), turn=((90, "y"),)),
        box(0.55, 0.78, 0.9, MAIN, at=(-0.5, 0, 0.32)).named("cabin"),
        box(0.7, 0.92, 0.09, DARK, at=(-0.5, 0, 0.8)),
        box(1.6, 0.7, 0.14, GREY, at=(0, 0, -0.2)),
        cylinder(0.1, chimney, DARK, top=0.16, at=(0.58, 0, 0.5 + chimney / 2)).named("chimney"),
        sphere(0.14, GOLD, at=(0.15, 0, 0.5)),
        *[box(0.3, 0.02, 0.3, GLASS, at=(-0.5, s * 0.395, 0.45)) for s in (-1, 1)],
        sphere(0.1, COLORS["yellow"], at=(0.86, 0, 0.3)),
    ]
    for x, r in ((-0.5, 0.28), (0.1, 0.2), (0.55, 0.2)):
        for s in (-1, 1):
            parts += _wheel(x, s * 0.38, -0.45 + r, r, 0.1)
    return parts


def rocket(rng: np.random.Generator) -> list[Part]:
    """A toy rocket standing on three fins."""
    length = rng.uniform(0.95, 1.15)
    nose = length / 2
    profile = [(0.0, -nose), (0.26, -nose), (0.36, -0.1), (0.33, 0.5 * nose), (0.22, nose)]
    profile += [(0.1, nose + 0.28), (0.0, nose + 0.4)]
    fin = ((0.0, -0.1), (0.42, -0.5), (0.42, -0.12), (0.0, 0.45))
    parts = [
        lathe([*profile[:5], (0.0, nose)], MAIN).named("body"),
        lathe([(0.0, nose), (0.22, nose), (0.1, nose + 0.28), (0.0, nose + 0.4)], SNOW).named(
            "nose"
        ),
        cylinder(0.2, 0.14, DARK, at=(0, 0, -nose - 0.05)),
        sphere(0.15, GLASS, scale=(0.4, 1, 1), at=(0.32, 0, 0.18)).named("window"),
    ]
    for k in range(3):
        parts.append(spin(plate(fin, 0.08, GREY, at=(0.22, 0, -nose + 0.15)), 120 * k + 180))
    return parts


def airplane(rng: np.random.Generator) -> list[Part]:
    """A propeller plane."""
    span = rng.uniform(1.7, 2.0)
    tail = ((-0.2, 0), (0.18, 0), (-0.02, 0.4), (-0.2, 0.4))
    return [
        capsule(0.24, 1.1, MAIN, turn=((90, "y"),)).named("body"),
        box(0.45, span, 0.07, MAIN, at=(0.12, 0, 0.02)).named("wings"),
        box(0.24, 0.75, 0.06, MAIN, at=(-0.68, 0, 0.06)),
        plate(tail, 0.07, MAIN, at=(-0.64, 0, 0.14)).named("tail"),
        sphere(0.18, GLASS, scale=(1.4, 0.8, 0.8), at=(0.3, 0, 0.2)),
        cone(0.1, 0.16, GREY, at=(0.76, 0, 0), turn=((90, "y"),)).named("nose"),
        box(0.03, 0.09, 0.75, DARK, at=(0.84, 0, 0)),
    ]


def sailboat(rng: np.random.Generator) -> list[Part]:
    """A sailing boat; hull and sail carry the colour, the foresail is white."""
    height = rng.uniform(1.0, 1.2)
    hull = ((-0.75, 0.35), (-0.6, 0.0), (0.45, 0.0), (0.85, 0.35))
    main = ((-0.66, 0.0), (0.0, 0.0), (0.0, height))
    jib = ((0.0, 0.0), (0.62, 0.0), (0.0, 0.8 * height))
    return [
        plate(hull, 0.5, MAIN, at=(0, 0, -0.75)).named("hull"),
        box(1.4, 0.42, 0.05, WOOD, at=(0, 0, -0.38)),
        cylinder(0.04, height + 0.25, WOOD, at=(0.04, 0, -0.3 + height / 2)).named("mast"),
        plate(main, 0.06, MAIN, at=(0.0, 0, -0.2)).named("sail"),
        plate(jib, 0.06, SNOW, at=(0.1, 0, -0.2)),
    ]
