"""Buildings and plants. +x is the front."""

from __future__ import annotations

import numpy as np

from scenes.toybox.palette import COLORS, DARK, GLASS, GOLD, GREY, LEAF, WOOD
from scenes.toybox.parts import MAIN, Part, box, capsule, cone, cylinder, prism, sphere, spin

__all__ = ["cactus", "castle", "flower", "house", "lighthouse", "tree"]


def house(rng: np.random.Generator) -> list[Part]:
    """A house with a gable roof, a door on the front and a chimney."""
    roof = rng.uniform(0.5, 0.65)
    gable = ((-0.72, 0), (0.72, 0), (0, roof))
    upright = ((90, "x"), (90, "z"))
    return [
        box(1.1, 1.15, 0.85, MAIN, at=(0, 0, -0.2)).named("walls"),
        prism(gable, 1.25, (0.42, 0.22, 0.18), at=(0, 0, 0.22), turn=upright).named("roof"),
        box(0.04, 0.28, 0.5, WOOD, at=(0.56, 0, -0.37)).named("door"),
        *[box(0.04, 0.24, 0.24, GLASS, at=(0.56, s * 0.36, -0.08)) for s in (-1, 1)],
        *[box(0.3, 0.04, 0.26, GLASS, at=(0, s * 0.585, -0.1)) for s in (-1, 1)],
        box(0.18, 0.18, 0.45, GREY, at=(-0.25, 0.3, 0.65)).named("chimney"),
    ]


def castle(rng: np.random.Generator) -> list[Part]:
    """A castle with four towers and a gate."""
    tall = rng.uniform(1.0, 1.2)
    parts = [
        box(1.1, 1.1, 0.65, MAIN, at=(0, 0, -0.4)).named("walls"),
        box(0.05, 0.34, 0.42, WOOD, at=(0.56, 0, -0.5)).named("gate"),
    ]
    for x in (-0.55, 0.55):
        for y in (-0.55, 0.55):
            parts += [
                cylinder(0.23, tall, MAIN, at=(x, y, -0.72 + tall / 2)),
                cone(0.3, 0.42, (0.36, 0.36, 0.42), at=(x, y, tall - 0.72)),
            ]
    for k in range(4):
        parts += [spin(box(0.12, 0.16, 0.14, MAIN, at=(0.5, y, 0)), 90 * k) for y in (-0.2, 0.2)]
    return parts


def lighthouse(rng: np.random.Generator) -> list[Part]:
    """A lighthouse; the tower carries the colour."""
    height = rng.uniform(1.15, 1.35)
    top = -0.7 + height
    return [
        cylinder(0.5, 0.2, GREY, top=0.46, at=(0, 0, -0.8)),
        cylinder(0.38, height, MAIN, top=0.24, at=(0, 0, -0.7 + height / 2)).named("tower"),
        cylinder(0.34, 0.07, DARK, at=(0, 0, top + 0.03)),
        cylinder(0.19, 0.26, COLORS["yellow"], at=(0, 0, top + 0.18)).named("light"),
        cone(0.28, 0.26, DARK, at=(0, 0, top + 0.31)).named("roof"),
        box(0.06, 0.2, 0.34, WOOD, at=(0.36, 0, -0.53)).named("door"),
        box(0.06, 0.12, 0.16, GLASS, at=(0.32, 0, 0.05)),
    ]


def tree(rng: np.random.Generator) -> list[Part]:
    """A fir tree of three tiers."""
    wide = rng.uniform(0.58, 0.68)
    return [
        cylinder(0.13, 0.5, WOOD, at=(0, 0, -0.72)).named("trunk"),
        cone(wide, 0.75, MAIN, at=(0, 0, -0.52)).named("crown"),
        cone(0.8 * wide, 0.65, MAIN, at=(0, 0, -0.1)),
        cone(0.58 * wide, 0.6, MAIN, at=(0, 0, 0.3)).named("top"),
    ]


def cactus(rng: np.random.Generator) -> list[Part]:
    """A cactus in a pot; the pot carries the colour."""
    arm = rng.uniform(0.28, 0.4)
    return [
        cylinder(0.38, 0.6, MAIN, top=0.5, at=(0, 0, -0.6)).named("pot"),
        cylinder(0.58, 0.16, MAIN, at=(0, 0, -0.28)),
        capsule(0.24, 0.8, LEAF, at=(0, 0, 0.15)).named("stem"),
        capsule(0.11, 0.3, LEAF, at=(0, 0.3, 0.1), turn=((90, "x"),)),
        capsule(0.11, arm, LEAF, at=(0, 0.46, 0.12 + arm / 2)).named("arm"),
        capsule(0.1, 0.25, LEAF, at=(0, -0.27, 0.28), turn=((90, "x"),)),
        capsule(0.1, 0.2, LEAF, at=(0, -0.42, 0.4)),
        sphere(0.11, COLORS["pink"], at=(0, 0, 0.82)).named("flower"),
    ]


def flower(rng: np.random.Generator) -> list[Part]:
    """A flower that faces the front; its petals carry the colour."""
    petals = int(rng.integers(6, 9))
    ring_r = 0.34
    parts = [
        capsule(0.055, 1.0, LEAF, at=(-0.08, 0, -0.4)).named("stem"),
        sphere(0.22, GOLD, scale=(0.5, 1, 1), at=(0.04, 0, 0.42)).named("centre"),
        sphere(0.22, GOLD, scale=(0.3, 0.6, 0.6), at=(-0.08, 0, 0.42)),
    ]
    for k in range(petals):
        a = 2 * np.pi * k / petals
        at = (0, ring_r * np.cos(a), 0.42 + ring_r * np.sin(a))
        turn = ((float(np.rad2deg(a)), "x"),)
        parts.append(sphere(0.24, MAIN, scale=(0.3, 1, 0.72), at=at, turn=turn))
    for s in (-1, 1):
        parts.append(
            sphere(
                0.26, LEAF, scale=(0.3, 1, 0.4), at=(-0.06, s * 0.24, -0.55), turn=((s * 35, "x"),)
            )
        )
    return parts
