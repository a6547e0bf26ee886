"""Food. Each function returns the parts of one individual; +x is the front."""

from __future__ import annotations

import numpy as np

from scenes.toybox.palette import COLORS, CREAM, LEAF, SNOW, WOOD
from scenes.toybox.parts import MAIN, Part, box, cone, cylinder, lathe, ring, sphere

__all__ = ["apple", "cupcake", "donut", "hamburger", "ice_cream", "mushroom"]


def apple(rng: np.random.Generator) -> list[Part]:
    """An apple with a stem and a leaf."""
    wide = rng.uniform(0.95, 1.05)
    profile = [(0, -0.46), (0.12, -0.55), (0.3, -0.58), (0.47, -0.5), (0.6, -0.3), (0.68, -0.05)]
    profile += [(0.69, 0.15), (0.63, 0.35), (0.5, 0.5), (0.33, 0.56), (0.18, 0.52), (0.06, 0.43)]
    profile += [(0, 0.41)]
    return [
        lathe([(wide * r, z) for r, z in profile], MAIN).named("body"),
        cylinder(0.05, 0.38, WOOD, at=(0, 0, 0.58), turn=((8, "x"),)).named("stem"),
        sphere(0.2, LEAF, scale=(1, 0.5, 0.2), at=(0.16, 0.05, 0.7), turn=((-20, "y"),)),
    ]


def donut(rng: np.random.Generator) -> list[Part]:
    """A doughnut with icing and sprinkles."""
    tube = rng.uniform(0.26, 0.31)
    parts = [
        ring(0.6, tube, (0.82, 0.60, 0.32), at=(0, 0, -0.04)),
        ring(0.6, 0.96 * tube, MAIN, at=(0, 0, 0.07)).named("icing"),
    ]
    bright = [COLORS[c] for c in ("yellow", "blue", "green", "white", "red")]
    for k in range(14):
        a, off = 2 * np.pi * (k + rng.uniform(-0.3, 0.3)) / 14, rng.uniform(-0.13, 0.13)
        at = ((0.6 + off) * np.cos(a), (0.6 + off) * np.sin(a), 0.07 + 0.93 * tube - off**2)
        turn = ((float(rng.uniform(0, 180)), "z"),)
        parts.append(box(0.14, 0.05, 0.05, bright[int(rng.integers(5))], at=at, turn=turn))
    return parts


def ice_cream(rng: np.random.Generator) -> list[Part]:
    """A scoop of ice cream in a cone, with a cherry."""
    scoop = rng.uniform(0.44, 0.5)
    return [
        cone(0.42, 1.1, (0.84, 0.62, 0.34), turn=((180, "x"),)).named("cone"),
        sphere(scoop, MAIN, at=(0, 0, 0.2)).named("scoop"),
        ring(0.4, 0.1, MAIN, at=(0, 0, 0.03)),
        sphere(0.11, COLORS["red"], at=(0, 0, 0.25 + scoop)).named("cherry"),
    ]


def mushroom(rng: np.random.Generator) -> list[Part]:
    """A toadstool; its cap carries the colour, with white dots."""
    wide = rng.uniform(0.65, 0.76)
    cap = [(0, -0.02), (wide, -0.04), (0.96 * wide, 0.16), (0.75 * wide, 0.4)]
    cap += [(0.4 * wide, 0.55), (0, 0.6)]
    stem = [(0, -0.85), (0.3, -0.85), (0.22, -0.5), (0.2, 0.0), (0, 0.0)]
    parts = [lathe(stem, CREAM).named("stem"), lathe(cap, MAIN).named("cap")]
    for k in range(8):
        a = 2 * np.pi * (k + rng.uniform(-0.2, 0.2)) / 8
        r, z = (0.87, 0.27) if k % 2 else (0.55, 0.48)
        at = (r * wide * np.cos(a), r * wide * np.sin(a), z)
        parts.append(sphere(0.1, SNOW, at=at))
    return parts


def hamburger(rng: np.random.Generator) -> list[Part]:
    """A hamburger; the bun carries the colour."""
    dome = rng.uniform(0.36, 0.46)
    top = [(0, 0.18), (0.68, 0.18), (0.7, 0.28), (0.56, 0.18 + 0.7 * dome), (0.3, 0.2 + dome)]
    top += [(0, 0.24 + dome)]
    parts = [
        lathe([(0, -0.45), (0.6, -0.45), (0.7, -0.34), (0.68, -0.2), (0, -0.2)], MAIN),
        lathe(top, MAIN).named("bun"),
        cylinder(0.74, 0.08, LEAF, at=(0, 0, 0.13)),
        cylinder(0.7, 0.16, (0.36, 0.19, 0.10), at=(0, 0, -0.1)).named("patty"),
        box(1.0, 1.0, 0.04, COLORS["yellow"], at=(0, 0, 0.02), turn=((45, "z"),)),
        cylinder(0.68, 0.08, COLORS["red"], at=(0, 0, 0.06)),
    ]
    for k in range(9):
        a, r = 2.4 * k, 0.1 + 0.04 * k
        at = (r * np.cos(a), r * np.sin(a), 0.26 + dome - 0.55 * r**2)
        parts.append(sphere(0.045, CREAM, at=at))
    return parts


def cupcake(rng: np.random.Generator) -> list[Part]:
    """A cupcake; the frosting carries the colour."""
    height = rng.uniform(0.5, 0.62)
    frosting = [(0, -0.02), (0.6, -0.02), (0.64, 0.1), (0.5, 0.22), (0.5, 0.28), (0.52, 0.34)]
    frosting += [(0.34, 0.46), (0.32, 0.5), (0.18, height + 0.05), (0, height + 0.15)]
    return [
        cylinder(0.4, 0.6, (0.80, 0.62, 0.42), top=0.55, at=(0, 0, -0.32)).named("cup"),
        *[
            box(
                0.03,
                0.05,
                0.58,
                WOOD,
                at=(0.49 * np.cos(a), 0.49 * np.sin(a), -0.32),
                turn=((9, "y"), (float(np.rad2deg(a)), "z")),
            )
            for a in np.linspace(0, 2 * np.pi, 14, endpoint=False)
        ],
        lathe(frosting, MAIN).named("frosting"),
        sphere(0.12, COLORS["red"], at=(0, 0, height + 0.2)).named("cherry"),
    ]
