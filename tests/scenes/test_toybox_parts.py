"""Primitives of the toybox against their closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from scenes.toybox.catalog import KIND_NAMES, KINDS
from scenes.toybox.parts import (
    MAIN,
    Part,
    box,
    capsule,
    cone,
    cylinder,
    lathe,
    plate,
    prism,
    ring,
    rotation,
    sphere,
    spin,
)
from tests.scenes.closed_surfaces import face_normals, is_closed, signed_volume

SIDES = 28
POLYGON_AREA = SIDES / 2 * np.sin(2 * np.pi / SIDES)  # of a unit circle drawn with 28 sides

# name: (part, volume, relative tolerance). Faceted bodies are exact, round ones lie inside.
PRIMITIVES: dict[str, tuple[Part, float, float]] = {
    "box": (box(0.5, 0.4, 0.3, MAIN, at=(1, 2, 3)), 0.06, 1e-9),
    "cylinder": (cylinder(0.5, 2.0, MAIN), POLYGON_AREA * 0.25 * 2, 1e-9),
    "tapered cylinder": (
        cylinder(0.5, 3.0, MAIN, top=0.25),
        POLYGON_AREA * (0.25 + 0.125 + 0.0625),  # h / 3 (R^2 + R r + r^2)
        1e-9,
    ),
    "cone": (cone(0.5, 3.0, MAIN, turn=((50, "x"),)), POLYGON_AREA * 0.25, 1e-9),
    "prism": (prism(((0, 0), (1, 0), (0, 1)), 0.5, MAIN), 0.25, 1e-9),
    "clockwise prism": (prism(((0, 0), (0, 1), (1, 0)), 0.5, MAIN), 0.25, 1e-9),
    "plate": (plate(((0, 0), (1, 0), (0, 1)), 0.5, MAIN), 0.25, 1e-9),
    "lathe": (lathe([(0, 0), (1, 0), (1, 2), (0, 2)], MAIN), 2 * POLYGON_AREA, 1e-9),
    "sphere": (sphere(0.5, MAIN), 4 / 3 * np.pi / 8, 0.05),
    "ellipsoid": (sphere(0.5, MAIN, scale=(2, 1, 0.5)), 4 / 3 * np.pi / 8, 0.05),
    "capsule": (capsule(0.5, 1.0, MAIN), np.pi / 4 + 4 / 3 * np.pi / 8, 0.05),
    "ring": (ring(0.6, 0.2, MAIN), 2 * np.pi**2 * 0.6 * 0.04, 0.05),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_volume_agrees_with_the_closed_form(name: str) -> None:
    part, volume, tolerance = PRIMITIVES[name]
    assert signed_volume(part.vertices, part.faces) == pytest.approx(volume, rel=tolerance)


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives_are_closed_with_unit_outward_normals(name: str) -> None:
    part = PRIMITIVES[name][0]
    assert is_closed(part.vertices, part.faces)
    assert np.linalg.norm(part.normals, axis=1) == pytest.approx(np.ones(len(part.vertices)))
    faces = face_normals(part.vertices, part.faces)
    # A vertex normal may lean over at a crease, never behind its own face.
    outward = np.einsum("fkc,fc->fk", part.normals[part.faces], faces)
    real = np.linalg.norm(faces, axis=1) > 1e-9
    assert outward[real].min() > 0


def test_sphere_normals_are_radial() -> None:
    part = sphere(0.5, MAIN, at=(1, 0, 0))
    radial = (part.vertices - (1, 0, 0)) / 0.5
    cosine = (part.normals * radial).sum(1)
    # At the poles the normal is that of the first ring of faces, half a latitude step (7.5) off.
    assert np.rad2deg(np.arccos(cosine.min())) < 8.0
    assert np.rad2deg(np.arccos(np.median(cosine).clip(max=1.0))) < 0.5


def test_mirroring_keeps_faces_outward() -> None:
    mirrored = box(1, 1, 1, MAIN).transformed(np.diag([1.0, -1.0, 1.0]))
    assert signed_volume(mirrored.vertices, mirrored.faces) == pytest.approx(1.0)
    faces = face_normals(mirrored.vertices, mirrored.faces)
    assert np.einsum("fkc,fc->fk", mirrored.normals[mirrored.faces], faces).min() > 0


def test_rotations_are_right_handed() -> None:
    assert rotation(90, "z") @ (1, 0, 0) == pytest.approx((0, 1, 0))
    assert rotation(90, "x") @ (0, 1, 0) == pytest.approx((0, 0, 1))
    assert rotation(90, "y") @ (0, 0, 1) == pytest.approx((1, 0, 0))


def test_spin_turns_about_the_origin() -> None:
    turned = spin(box(0.1, 0.1, 0.1, MAIN, at=(1, 0, 0)), 90)
    assert turned.vertices.mean(0) == pytest.approx((0, 1, 0))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_every_part_of_every_kind_is_a_closed_body(kind: str) -> None:
    for k, part in enumerate(KINDS[kind].build(np.random.default_rng(3))):
        where = f"part {k} of {kind}"
        assert is_closed(part.vertices, part.faces), where
        assert signed_volume(part.vertices, part.faces) > 0, where
        assert np.linalg.norm(part.normals, axis=1) == pytest.approx(np.ones(len(part.normals)))
