"""Single toybox objects: the same from the same words, of one size, with the right surface."""

from __future__ import annotations

import numpy as np
import pytest

from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, KINDS, PATTERNS
from scenes.toybox.objects import OBJECT_RADIUS, ObjectSpec, build_object, pattern_mask
from scenes.toybox.palette import COLORS


def test_the_world_is_as_large_as_promised() -> None:
    assert len(KIND_NAMES) >= 32
    assert len(COLOR_NAMES) == 10
    assert PATTERNS == ("plain", "striped", "dotted", "checked")
    nouns = [noun for kind in KINDS.values() for noun in (kind.noun, *kind.synonyms)]
    assert len(set(nouns)) == len(nouns), "a noun that means two kinds cannot be judged"


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_objects_are_deterministic_centred_and_fill_the_radius(kind: str) -> None:
    spec = ObjectSpec(kind, "red", individual=5)
    first, second = build_object(spec), build_object(spec)
    for name in ("vertices", "normals", "faces", "face_color", "face_patterned"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert np.linalg.norm(first.vertices, axis=1).max() == pytest.approx(OBJECT_RADIUS)
    assert (first.vertices.min(0) + first.vertices.max(0)) == pytest.approx(np.zeros(3), abs=1e-9)
    assert first.faces.min() >= 0
    assert first.faces.max() < len(first.vertices)
    assert len(first.face_color) == len(first.face_second) == len(first.faces)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_colour_shows_on_a_good_part_of_the_surface(kind: str) -> None:
    toy = build_object(ObjectSpec(kind, "purple"))
    a, b, c = (toy.vertices[toy.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    assert area[toy.face_patterned].sum() / area.sum() > 0.15
    assert np.allclose(toy.face_color[toy.face_patterned], COLORS["purple"])


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_keypoints_lie_inside_the_object_s_box(kind: str) -> None:
    toy = build_object(ObjectSpec(kind, "red"))
    assert len(toy.keypoints) >= 1
    for name, point in toy.keypoints.items():
        assert np.all(point >= toy.vertices.min(0)), name
        assert np.all(point <= toy.vertices.max(0)), name


def test_individuals_differ_in_shape_but_colours_do_not_change_it() -> None:
    shape = build_object(ObjectSpec("duck", "red", individual=0)).vertices
    assert not np.allclose(shape, build_object(ObjectSpec("duck", "red", individual=1)).vertices)
    other = build_object(ObjectSpec("duck", "blue", "striped", individual=0))
    assert np.array_equal(shape, other.vertices)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_cover_their_share(pattern: str) -> None:
    positions = np.random.default_rng(0).uniform(-10.2, 10.2, (20_000, 3))
    share = pattern_mask(pattern, positions).mean()
    # Stripes: 0.36 of a period. Dots: balls of 0.34 periods, 4/3 pi 0.34^3. Checks: half.
    expected = {
        "plain": 0.0,
        "striped": 0.36,
        "dotted": 4 / 3 * np.pi * 0.34**3,
        "checked": 0.5,
    }
    assert share == pytest.approx(expected[pattern], abs=0.01)


def test_the_second_colour_contrasts_with_every_colour() -> None:
    for color in COLOR_NAMES:
        toy = build_object(ObjectSpec("apple", color, "striped"))
        second = toy.face_second[toy.face_patterned][0]
        assert np.abs(second - COLORS[color]).max() > 0.15, color


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("dukc", "red", "plain"), "kind 'dukc' is not in the toybox; expected one of duck, fish"),
        (("duck", "mauve", "plain"), "color 'mauve' is not in the toybox; expected one of red"),
        (("duck", "red", "tartan"), "pattern 'tartan' is not in the toybox; expected one of plain"),
    ],
)
def test_bad_words_are_named(words: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        ObjectSpec(*words)
    assert str(error.value).startswith(message)
