"""Toys. +x is the front."""

from __future__ import annotations

import numpy as np

from scenes.toybox.palette import COLORS, CREAM, DARK, GREY
from scenes.toybox.parts import MAIN, Part, box, cone, cylinder, ring, sphere

__all__ = ["robot", "snowman", "teddy_bear"]


def robot(rng: np.random.Generator) -> list[Part]:
    """A boxy robot with an antenna."""
    head = rng.uniform(0.5, 0.6)
    parts = [
        box(0.6, 0.85, 0.8, MAIN, at=(0, 0, -0.05)).named("body"),
        box(0.46, head, 0.42, GREY, at=(0, 0, 0.58)).named("head"),
        cylinder(0.035, 0.26, DARK, at=(0, 0, 0.9)),
        sphere(0.08, COLORS["red"], at=(0, 0, 1.05)).named("antenna"),
        box(0.04, 0.4, 0.24, CREAM, at=(0.31, 0, 0.05)).named("panel"),
    ]
    for s in (-1, 1):
        parts += [
            sphere(0.08, COLORS["yellow"], at=(0.23, s * 0.13, 0.63)),
            box(0.2, 0.18, 0.72, MAIN, at=(0, s * 0.55, -0.08)),
            sphere(0.12, GREY, at=(0, s * 0.55, -0.5)),
            box(0.3, 0.26, 0.45, GREY, at=(0.03, s * 0.22, -0.66)),
        ]
    return parts


def snowman(rng: np.random.Generator) -> list[Part]:
    """A snowman of three balls; the balls carry the colour."""
    low = rng.uniform(0.48, 0.54)
    return [
        sphere(low, MAIN, at=(0, 0, -0.5)).named("body"),
        sphere(0.38, MAIN, at=(0, 0, 0.14)),
        sphere(0.28, MAIN, at=(0, 0, 0.64)).named("head"),
        cone(0.07, 0.34, COLORS["orange"], at=(0.25, 0, 0.64), turn=((90, "y"),)).named("nose"),
        *[sphere(0.05, DARK, at=(0.24, s * 0.1, 0.74)) for s in (-1, 1)],
        *[sphere(0.055, DARK, at=(0.36 + 0.02 * k, 0, 0.22 - 0.2 * k)) for k in (0, 1)],
        cylinder(0.36, 0.06, DARK, at=(0, 0, 0.86)),
        cylinder(0.22, 0.32, DARK, at=(0, 0, 1.03)).named("hat"),
        ring(0.28, 0.075, COLORS["red"], at=(0, 0, 0.4)).named("scarf"),
    ]


def teddy_bear(rng: np.random.Generator) -> list[Part]:
    """A sitting teddy bear."""
    belly = rng.uniform(0.44, 0.5)
    parts = [
        sphere(belly, MAIN, scale=(0.9, 1, 1.05), at=(0, 0, -0.35)).named("body"),
        sphere(0.3, CREAM, scale=(0.5, 1, 1), at=(0.3, 0, -0.36)),
        sphere(0.38, MAIN, at=(0.05, 0, 0.38)).named("head"),
        sphere(0.17, CREAM, at=(0.37, 0, 0.3)),
        sphere(0.065, DARK, at=(0.52, 0, 0.35)).named("nose"),
    ]
    for s in (-1, 1):
        parts += [
            sphere(0.15, MAIN, scale=(0.6, 1, 1), at=(0.02, s * 0.31, 0.68)),
            sphere(0.055, DARK, at=(0.37, s * 0.14, 0.47)),
            sphere(0.17, MAIN, scale=(1, 1, 1.7), at=(0.14, s * 0.46, -0.2), turn=((s * 30, "x"),)),
            sphere(0.2, MAIN, scale=(1.6, 0.95, 0.95), at=(0.34, s * 0.32, -0.66)),
            sphere(0.12, CREAM, scale=(0.4, 1, 1), at=(0.62, s * 0.33, -0.66)),
        ]
    return parts
