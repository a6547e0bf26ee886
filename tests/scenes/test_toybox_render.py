"""Images and buffers of the toybox against analytic silhouettes, depths and normals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from renderers.cameras import Cameras, orbit_cameras
from scenes.toybox.objects import ObjectSpec, ToyObject, build_object
from scenes.toybox.parts import MAIN, Part, box, sphere
from scenes.toybox.render import ToyBuffers, ToyGeometry, render_buffers, render_rgb
from scenes.toybox.scene import SceneSpec, ToyScene, build_scene

SIZE, DISTANCE, FOVY_DEG = 64, 2.6, 42.0
FOCAL = SIZE / 2 / np.tan(np.deg2rad(FOVY_DEG / 2))  # pixels
WHITE = np.ones(3)
RADIUS = 0.6
# A toybox sphere has 28 meridians and 12 latitudes: its surface lies up to 1.5 % inside.
FACETING = 0.985


def camera(azimuth_deg: float = 0.0, elevation_deg: float = 0.0, size: int = SIZE) -> Cameras:
    """One camera that looks at the origin."""
    return orbit_cameras(
        1,
        elevation_deg=elevation_deg,
        distance=DISTANCE,
        fovy_deg=FOVY_DEG,
        height=size,
        width=size,
        azimuth_start_deg=azimuth_deg,
    )


def scene_of(part: Part, pattern: str = "plain") -> ToyScene:
    """A scene of one plain red body at its own place and size."""
    count = len(part.faces)
    toy = ToyObject(
        vertices=part.vertices,
        normals=part.normals,
        faces=part.faces,
        face_color=np.tile((0.8, 0.1, 0.1), (count, 1)),
        face_second=np.tile((0.9, 0.9, 0.9), (count, 1)),
        face_patterned=np.ones(count, dtype=bool),
        pattern=pattern,
        keypoints={"centre": (part.vertices.min(0) + part.vertices.max(0)) / 2},
    )
    return ToyScene((toy,), np.zeros((1, 3)), np.ones(1))


def buffers_of(kind: str, azimuth_deg: float, elevation_deg: float = 10.0) -> ToyBuffers:
    """Buffers of a red individual of a kind."""
    geometry = ToyGeometry(build_scene(SceneSpec((ObjectSpec(kind, "red"),))))
    return render_buffers(geometry, camera(azimuth_deg, elevation_deg), background=WHITE)


def pixel_radius(size: int = SIZE) -> np.ndarray:
    """Distance of each pixel's centre from the image's centre, pixels."""
    at = np.arange(size) + 0.5 - size / 2
    return np.hypot(*np.meshgrid(at, at))


@pytest.fixture(scope="module")
def ball() -> ToyBuffers:
    """A sphere around the origin."""
    geometry = ToyGeometry(scene_of(sphere(RADIUS, MAIN)))
    return render_buffers(geometry, camera(), background=np.array([0.2, 0.4, 0.6]))


def test_sphere_mask_is_its_analytic_silhouette(ball: ToyBuffers) -> None:
    # The cone that touches a sphere has the half angle asin(radius / distance).
    outer, inner = (
        FOCAL * np.tan(np.arcsin(radius / DISTANCE)) for radius in (RADIUS, RADIUS * FACETING)
    )
    half_pixel = np.sqrt(0.5)
    away = pixel_radius()
    assert np.all(ball.mask[0][away < inner - half_pixel] == 1.0)
    assert np.all(ball.mask[0][away > outer + half_pixel] == 0.0)
    assert ball.mask.sum() == pytest.approx(np.pi * outer**2, rel=0.03)


def test_sphere_depth_is_analytic(ball: ToyBuffers) -> None:
    hit = ball.instance[0] == 1
    tangent = pixel_radius()[hit] / FOCAL
    depth = {}
    for name, radius in (("near", RADIUS), ("far", RADIUS * FACETING)):
        # z along the axis: |(z tan, z - distance)| = radius.
        a, b, c = 1 + tangent**2, -2 * DISTANCE, DISTANCE**2 - radius**2
        depth[name] = (-b - np.sqrt(np.maximum(b * b - 4 * a * c, 0.0))) / (2 * a)
    core = tangent * DISTANCE < 0.8 * RADIUS  # where the two shells are close in depth
    found = ball.depth[0][hit]
    assert np.all(found[core] >= depth["near"][core] - 1e-4)
    assert np.all(found[core] <= depth["far"][core] + 1e-4)
    assert np.all(ball.depth[0][~hit] == 0.0)


def test_sphere_normals_are_analytic_in_camera_space(ball: ToyBuffers) -> None:
    hit = ball.instance[0] == 1
    normal = ball.normal[0][hit]
    assert np.linalg.norm(normal, axis=1) == pytest.approx(np.ones(hit.sum()), abs=1e-5)
    rows, columns = np.nonzero(hit)
    depth = ball.depth[0][hit]
    x = (columns + 0.5 - SIZE / 2) / FOCAL * depth
    y = -(rows + 0.5 - SIZE / 2) / FOCAL * depth  # +y is up, rows go down
    expected = np.stack([x, y, DISTANCE - depth], 1) / RADIUS
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (normal * expected).sum(1).min() > np.cos(np.deg2rad(8.0))
    assert np.all(ball.normal[0][~hit] == 0.0)


def test_box_mask_is_exact_at_every_sample() -> None:
    cube = scene_of(box(0.6, 0.7, 0.5, MAIN))
    mask = render_buffers(ToyGeometry(cube), camera(), background=WHITE).mask[0]
    scale = FOCAL / (DISTANCE - 0.3)  # pixels per unit at the front face, which hides the rest
    at = (np.arange(2 * SIZE) + 0.5) / 2 - SIZE / 2
    wide, high = np.abs(at) < 0.35 * scale, np.abs(at) < 0.25 * scale
    samples = (high[:, None] & wide[None]).reshape(SIZE, 2, SIZE, 2)
    assert np.array_equal(mask, samples.mean((1, 3), dtype=np.float32))


def test_background_fills_exactly_what_the_mask_leaves(ball: ToyBuffers) -> None:
    empty = ball.mask[0] == 0
    assert np.allclose(ball.rgb[0][empty], (0.2, 0.4, 0.6))
    assert ball.rgb.min() >= 0.0
    assert ball.rgb.max() <= 1.0


def test_edges_are_outlines_and_creases_only() -> None:
    cube = ToyGeometry(scene_of(box(0.8, 0.8, 0.8, MAIN)))
    face_on = render_buffers(cube, camera(), background=WHITE)
    half = int(0.4 * FOCAL / (DISTANCE - 0.4)) - 2
    middle = slice(SIZE // 2 - half, SIZE // 2 + half)
    assert not face_on.edges[0, middle, middle].any(), "a flat face has no edge"
    assert face_on.edges[0].any(0).sum() > 2 * half, "its outline is one"
    cornered = render_buffers(cube, camera(azimuth_deg=45.0), background=WHITE)
    crease = cornered.edges[0, SIZE // 2 - 3 : SIZE // 2 + 3, SIZE // 2 - 2 : SIZE // 2 + 2]
    assert crease.any(1).all(), "two faces meet in the middle of the image"


@pytest.mark.parametrize("kind", ["duck", "house", "teapot", "umbrella", "castle"])
def test_normals_are_unit_and_the_buffers_agree(kind: str) -> None:
    buffers = buffers_of(kind, 30.0)
    hit = buffers.instance > 0
    assert np.linalg.norm(buffers.normal[hit], axis=-1) == pytest.approx(
        np.ones(hit.sum()), abs=1e-5
    )
    assert buffers.normal[hit][:, 2].min() >= 0.0, "towards the camera"
    assert np.array_equal(buffers.depth > 0, hit)
    # The mask's four samples surround the pixel's centre, so a thin part may slip between them.
    assert (buffers.mask[hit] == 0).mean() < 0.01
    assert np.all(hit[buffers.mask == 1.0])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("duck", "beak"), ("house", "door"), ("robot", "panel"), ("teddy_bear", "nose")],
)
def test_the_front_shows_at_azimuth_0_and_hides_at_180(kind: str, name: str) -> None:
    for azimuth_deg, expected in ((0.0, True), (180.0, False)):
        x, y, visible = buffers_of(kind, azimuth_deg).keypoints[0][f"0/{name}"]
        assert 0 <= x < SIZE
        assert 0 <= y < SIZE
        assert visible is expected


def test_keypoints_project_to_the_pinhole_formula() -> None:
    body = box(0.1, 0.1, 0.1, MAIN, at=(0.2, 0.3, 0.4))
    buffers = render_buffers(ToyGeometry(scene_of(body)), camera(), background=WHITE)
    x, y, visible = buffers.keypoints[0]["0/centre"]
    scale = FOCAL / (DISTANCE - 0.2)
    assert x == pytest.approx(SIZE / 2 + 0.3 * scale, abs=1e-2)
    assert y == pytest.approx(SIZE / 2 - 0.4 * scale, abs=1e-2)
    assert visible


@pytest.mark.parametrize(("kind", "name", "side"), [("mug", "handle", -1), ("teapot", "spout", 1)])
def test_the_front_image_is_not_mirrored(kind: str, name: str, side: int) -> None:
    x, _, _ = buffers_of(kind, 0.0).keypoints[0][f"0/{name}"]
    assert side * (x - SIZE / 2) > 5


def test_up_is_up() -> None:
    points = buffers_of("snowman", 0.0).keypoints[0]
    assert points["0/hat"][1] < points["0/head"][1] < points["0/body"][1]


def test_a_batch_renders_as_its_cameras_one_by_one() -> None:
    geometry = ToyGeometry(build_scene(SceneSpec((ObjectSpec("car", "blue", "dotted"),))))
    views = orbit_cameras(
        3, elevation_deg=20.0, distance=DISTANCE, fovy_deg=FOVY_DEG, height=24, width=32
    )
    together, _ = render_rgb(geometry, views, background=WHITE)
    for k in range(3):
        alone, _ = render_rgb(geometry, views[k : k + 1], background=WHITE)
        assert np.array_equal(together[k], alone[0])


def test_instances_are_numbered_in_the_order_of_the_words() -> None:
    spec = SceneSpec((ObjectSpec("apple", "red"), ObjectSpec("apple", "blue")), ("left of",))
    buffers = render_buffers(ToyGeometry(build_scene(spec)), camera(), background=WHITE)
    assert set(np.unique(buffers.instance)) == {0, 1, 2}
    red, blue = (buffers.rgb[buffers.instance == k].mean(0) for k in (1, 2))
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_a_pattern_adds_its_second_colour_and_nothing_else() -> None:
    toy = build_object(ObjectSpec("apple", "blue", "checked"))
    views = camera(20.0, 10.0)
    images = [
        render_rgb(
            ToyGeometry(ToyScene((replace(toy, pattern=name),), np.zeros((1, 3)), np.ones(1))),
            views,
            background=WHITE,
            supersample=1,
        )[0][0]
        for name in ("plain", "checked")
    ]
    changed = np.any(images[0] != images[1], axis=-1)
    share = changed.sum() / (images[0].min(-1) < 0.99).sum()
    assert 0.2 < share < 0.8
    assert images[1][changed].mean() > images[0][changed].mean(), "white checks on blue"
