"""Furniture and household tools. +x is the front."""

from __future__ import annotations

import numpy as np

from scenes.toybox.palette import CREAM, DARK, GREY, WOOD
from scenes.toybox.parts import (
    MAIN,
    Part,
    box,
    capsule,
    cone,
    cylinder,
    lathe,
    ring,
    sphere,
)

__all__ = ["chair", "lamp", "mug", "sofa", "table", "teapot", "umbrella"]


def chair(rng: np.random.Generator) -> list[Part]:
    """A kitchen chair with a solid back."""
    back = rng.uniform(0.75, 0.95)
    parts = [
        box(0.9, 0.9, 0.12, MAIN).named("seat"),
        box(0.12, 0.9, back, MAIN, at=(-0.4, 0, back / 2)).named("back"),
    ]
    for x in (-0.38, 0.38):
        for y in (-0.38, 0.38):
            parts.append(box(0.1, 0.1, 0.75, WOOD, at=(x, y, -0.4)))
    return parts


def table(rng: np.random.Generator) -> list[Part]:
    """A round table on one leg; its top carries the colour."""
    wide = rng.uniform(0.82, 0.95)
    return [
        cylinder(wide, 0.16, MAIN, at=(0, 0, 0.4)).named("top"),
        cylinder(0.11, 0.8, WOOD, at=(0, 0, -0.05)).named("leg"),
        cylinder(0.5, 0.1, WOOD, top=0.3, at=(0, 0, -0.45)).named("base"),
    ]


def lamp(rng: np.random.Generator) -> list[Part]:
    """A table lamp; its shade carries the colour."""
    low = rng.uniform(0.5, 0.6)
    return [
        cylinder(0.38, 0.1, GREY, top=0.32, at=(0, 0, -0.82)).named("base"),
        cylinder(0.06, 1.0, GREY, at=(0, 0, -0.35)),
        cylinder(low, 0.65, MAIN, top=0.3, at=(0, 0, 0.42)).named("shade"),
        sphere(0.06, GREY, at=(0, 0, 0.8)),
    ]


def sofa(rng: np.random.Generator) -> list[Part]:
    """A two-seat sofa."""
    width = rng.uniform(1.45, 1.65)
    parts = [
        box(0.8, width, 0.3, MAIN, at=(0, 0, -0.15)),
        box(0.22, width, 0.78, MAIN, at=(-0.35, 0, 0.12)).named("back"),
    ]
    for s in (-1, 1):
        arm = capsule(0.13, 0.6, MAIN, at=(0.05, s * width / 2, 0.16), turn=((90, "y"),))
        parts += [
            arm,
            box(0.8, 0.2, 0.34, MAIN, at=(0.02, s * width / 2, 0)),
            box(0.6, width / 2 - 0.16, 0.14, CREAM, at=(0.1, s * (width / 4 - 0.02), 0.05)),
            *[
                box(0.1, 0.1, 0.16, WOOD, at=(x, s * (width / 2 - 0.05), -0.36))
                for x in (-0.3, 0.3)
            ],
        ]
    return parts


def mug(rng: np.random.Generator) -> list[Part]:
    """A mug; its handle points to the left of the front view."""
    h = rng.uniform(0.95, 1.2)
    wall = [
        (0, -h / 2),
        (0.5, -h / 2),
        (0.52, 0),
        (0.5, h / 2),
        (0.44, h / 2),
        (0.42, h / 2 - 0.12),
    ]
    return [
        lathe([*wall, (0.0, h / 2 - 0.12)], MAIN).named("body"),
        cylinder(0.43, 0.02, (0.22, 0.12, 0.06), at=(0, 0, h / 2 - 0.1)).named("coffee"),
        ring(0.28, 0.085, MAIN, at=(0, -0.54, 0), turn=((90, "y"),)).named("handle"),
    ]


def teapot(rng: np.random.Generator) -> list[Part]:
    """A teapot; its spout points to the right of the front view."""
    h = rng.uniform(0.46, 0.56)
    body = [(0, -h), (0.38, -h), (0.6, -0.2), (0.62, 0.0), (0.5, 0.7 * h), (0.3, h), (0, h)]
    return [
        lathe(body, MAIN).named("body"),
        sphere(0.3, MAIN, scale=(1, 1, 0.4), at=(0, 0, h)),
        sphere(0.09, DARK, at=(0, 0, h + 0.16)).named("knob"),
        cylinder(0.15, 0.6, MAIN, top=0.07, at=(0, 0.72, 0.1), turn=((-50, "x"),)).named("spout"),
        ring(0.3, 0.07, MAIN, at=(0, -0.62, 0.05), turn=((90, "y"),)).named("handle"),
    ]


def umbrella(rng: np.random.Generator) -> list[Part]:
    """An open umbrella with a hooked handle."""
    wide = rng.uniform(0.88, 1.0)
    canopy = [
        (0, 0.18),
        (wide, 0.08),
        (0.98 * wide, 0.14),
        (0.78 * wide, 0.42),
        (0.45 * wide, 0.62),
    ]
    return [
        lathe([*canopy, (0, 0.7)], MAIN).named("canopy"),
        cylinder(0.035, 1.5, GREY, at=(0, 0, -0.05)),
        cone(0.04, 0.2, GREY, at=(0, 0, 0.68)).named("tip"),
        ring(0.14, 0.045, WOOD, at=(0, 0.14, -0.78), turn=((90, "y"),)).named("handle"),
    ]
