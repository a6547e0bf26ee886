"""Scenes of several objects: relations hold in space and in the front image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.objects import OBJECT_RADIUS, ObjectSpec
from scenes.toybox.render import ToyGeometry, render_buffers
from scenes.toybox.scene import RELATIONS, SceneSpec, ToyScene, build_scene

BALL = ObjectSpec("apple", "red")
CUBE = ObjectSpec("house", "blue")


def front(elevation_deg: float = 0.0) -> Cameras:
    """The camera at azimuth 0."""
    return orbit_cameras(
        1, elevation_deg=elevation_deg, distance=2.6, fovy_deg=42.0, height=48, width=48
    )


def boxes(scene: ToyScene) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bounding boxes of the placed objects."""
    placed = [
        obj.vertices * scale + offset
        for obj, offset, scale in zip(scene.objects, scene.offsets, scene.scales)
    ]
    return [(points.min(0), points.max(0)) for points in placed]


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_hold_in_space(relation: str) -> None:
    direction = np.asarray(RELATIONS[relation])
    axis, sign = int(np.abs(direction).argmax()), direction.sum()
    (low_a, high_a), (low_b, high_b) = boxes(build_scene(SceneSpec((BALL, CUBE), (relation,))))
    gap = low_a[axis] - high_b[axis] if sign > 0 else low_b[axis] - high_a[axis]
    if relation == "on top of":
        assert gap == pytest.approx(0.0, abs=1e-9)
    else:
        assert gap > 0.02
        assert low_a[2] == pytest.approx(low_b[2]), "both stand on the same floor"


@pytest.mark.parametrize("relation", ["left of", "right of", "on top of"])
def test_relations_hold_in_the_front_image(relation: str) -> None:
    geometry = ToyGeometry(build_scene(SceneSpec((BALL, CUBE), (relation,))))
    instance = render_buffers(geometry, front(), background=np.ones(3)).instance[0]
    (row_a, column_a), (row_b, column_b) = (np.argwhere(instance == k).mean(0) for k in (1, 2))
    # Row 0 is the top, column 0 the left.
    shift = {
        "left of": column_b - column_a,
        "right of": column_a - column_b,
        "on top of": row_b - row_a,
    }
    assert shift[relation] > 10


@pytest.mark.parametrize(("relation", "nearer"), [("in front of", 1), ("behind", 2)])
def test_the_front_camera_sees_who_stands_in_front(relation: str, nearer: int) -> None:
    geometry = ToyGeometry(build_scene(SceneSpec((BALL, CUBE), (relation,))))
    # From above, since at eye level the nearer one may hide the other.
    buffers = render_buffers(geometry, front(elevation_deg=40.0), background=np.ones(3))
    depth = {k: float(buffers.depth[buffers.instance == k].min()) for k in (1, 2)}
    assert min(depth, key=depth.get) == nearer
    assert abs(depth[1] - depth[2]) > 0.2


@pytest.mark.parametrize("relations", list(itertools.product(RELATIONS, repeat=2)))
def test_three_objects_never_intersect(relations: tuple[str, str]) -> None:
    """ "A left of B right of C" asks for A and C at the same place."""
    scene = build_scene(SceneSpec((BALL, CUBE, ObjectSpec("duck", "yellow")), relations))
    for (low_a, high_a), (low_b, high_b) in itertools.combinations(boxes(scene), 2):
        assert np.any((low_a > high_b - 1e-6) | (low_b > high_a - 1e-6))


def test_four_objects_fit_the_unit_scene() -> None:
    spec = SceneSpec((BALL, CUBE, BALL, CUBE), ("left of", "behind", "on top of"))
    scene = build_scene(spec)
    placed = ToyGeometry(scene).vertices
    assert np.linalg.norm(placed, axis=1).max() == pytest.approx(OBJECT_RADIUS)


def test_a_single_object_is_left_where_it_is() -> None:
    scene = build_scene(SceneSpec((CUBE,)))
    assert np.allclose(ToyGeometry(scene).vertices, scene.objects[0].vertices)


@pytest.mark.parametrize(
    ("count", "relations", "message"),
    [
        (0, (), "a scene has 0 objects; expected 1 to 4."),
        (5, ("behind",) * 4, "a scene has 5 objects; expected 1 to 4."),
        (2, (), "2 objects need 1 relations, got 0."),
        (2, ("under",), "relation 'under' is unknown; expected one of left of, right of"),
    ],
)
def test_bad_scenes_are_explained(count: int, relations: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError) as error:
        SceneSpec((BALL,) * count, relations)
    assert str(error.value).startswith(message)
