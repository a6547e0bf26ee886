"""Pictures of keypoints: where the camera says, hidden ones left out, one colour for each name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.keypoints import keypoint_names
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.render import ToyGeometry, render_buffers
from scenes.toybox.scene import SceneSpec, build_scene
from studio.training.keypoint_pictures import keypoint_colors, keypoint_picture

SIZE, DISTANCE, FOVY_DEG = 128, 3.0, 40.0
SHAPE = (SIZE, SIZE)


def camera(azimuth_deg: float) -> Cameras:
    """One camera that looks at the origin."""
    ring = orbit_cameras(
        8, elevation_deg=20.0, distance=DISTANCE, fovy_deg=FOVY_DEG, height=SIZE, width=SIZE
    )
    place = round(azimuth_deg / 45.0)
    return ring[place : place + 1]


def scene_of(*kinds: str) -> ToyGeometry:
    """Red objects beside each other."""
    objects = tuple(ObjectSpec(kind, "red") for kind in kinds)
    return ToyGeometry(build_scene(SceneSpec(objects, ("left of",) * (len(kinds) - 1))))


def seen_from(geometry: ToyGeometry, azimuth_deg: float) -> dict[str, tuple[float, float, bool]]:
    return render_buffers(geometry, camera(azimuth_deg), background=np.ones(3)).keypoints[0]


def has(picture: torch.Tensor, name: str) -> torch.Tensor:
    """Where a picture has the full colour of a name."""
    color = torch.tensor(keypoint_colors()[name])
    return ((picture * 255.0).round().int() == color).all(-1)


def test_a_disc_lies_where_the_camera_projects_the_parts_centre():
    """By hand: world point to camera axes, divided by its depth, times the focal length."""
    geometry, view = scene_of("teapot"), camera(45.0)
    scene = geometry.scene
    point = scene.objects[0].keypoints["spout"] * scene.scales[0] + scene.offsets[0]
    c2w = view.c2w[0].double().numpy()
    x, y, z = (point - c2w[:3, 3]) @ c2w[:3, :3]
    focal = SIZE / 2 / math.tan(math.radians(FOVY_DEG / 2))
    column, row = SIZE / 2 - focal * x / z, SIZE / 2 + focal * y / z

    found = seen_from(geometry, 45.0)
    picture = keypoint_picture({"0/spout": (*found["0/spout"][:2], True)}, SHAPE)
    rows, columns = torch.nonzero(has(picture, "spout"), as_tuple=True)
    assert float(columns.double().mean() + 0.5) == pytest.approx(column, abs=0.3)
    assert float(rows.double().mean() + 0.5) == pytest.approx(row, abs=0.3)


def test_what_the_depth_buffer_hides_is_not_drawn():
    duck = scene_of("duck")
    front, back = (keypoint_picture(seen_from(duck, angle), SHAPE) for angle in (0.0, 180.0))
    assert has(front, "beak").any()
    assert not has(front, "tail").any()
    assert not has(back, "beak").any()
    assert has(back, "tail").any()


def test_what_is_outside_of_the_view_is_not_drawn():
    duck, near = scene_of("duck"), camera(0.0)
    close = orbit_cameras(
        1, elevation_deg=20.0, distance=0.9, fovy_deg=20.0, height=SIZE, width=SIZE
    )
    far, cut = (render_buffers(duck, c, background=np.ones(3)).keypoints[0] for c in (near, close))
    outside = [key for key, (x, y, _) in cut.items() if not (0 <= x < SIZE and 0 <= y < SIZE)]
    assert outside, "the camera stands so close that parts leave the view"
    assert not any(cut[key][2] for key in outside)
    assert far.keys() == cut.keys()


def test_parts_are_joined_to_the_first_of_their_own_object():
    picture = keypoint_picture(
        {
            "0/body": (20.0, 20.0, True),
            "0/head": (100.0, 20.0, True),
            "1/body": (20.0, 100.0, True),
            "1/tail": (100.0, 100.0, False),
        },
        SHAPE,
    )
    middle = torch.tensor(keypoint_colors()["head"]) * 0.6 / 255.0
    torch.testing.assert_close(picture[20, 60], middle, atol=1e-3, rtol=0)
    assert float(picture[40:80].max()) == 0.0, "objects are not joined"
    assert float(picture[100, 40:].max()) == 0.0, "nor are points that are not seen"


def test_the_same_scene_gives_the_same_bits_and_every_name_its_own_colour():
    geometry = scene_of("duck", "mug")
    first, again = (keypoint_picture(seen_from(geometry, 0.0), SHAPE) for _ in "ab")
    assert torch.equal(first, again)
    colors = keypoint_colors()
    assert list(colors) == list(keypoint_names())
    assert len(set(colors.values())) == len(colors)
    assert (0, 0, 0) not in colors.values()


def test_a_scene_without_keypoints_is_black():
    assert float(keypoint_picture({}, (8, 12)).max()) == 0.0
