"""Pictures and buffers of pack objects against analytic silhouettes, colours and coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from renderers.cameras import Cameras, orbit_cameras
from scenes.objects.mesh import ObjectMesh
from scenes.objects.render import (
    Lighting,
    ObjectGeometry,
    Recolor,
    render_buffers,
    render_rgb,
)

FLAT = Lighting(ambient=1.0, head=0.0, sky=0.0)
WHITE, BLACK = np.ones(3), np.zeros(3)
DISTANCE, FOVY_DEG = 3.0, 40.0


def camera(size: int = 32, azimuth_deg: float = 0.0) -> Cameras:
    """One camera at the height of the origin."""
    return orbit_cameras(
        1, elevation_deg=0.0, distance=DISTANCE, fovy_deg=FOVY_DEG, height=size, width=size,
        azimuth_start_deg=azimuth_deg,
    )  # fmt: skip


def card(
    *,
    half: float = 0.5,
    rgb: tuple[float, float, float] = (0.2, 0.4, 0.6),
    opacity: float = 1.0,
    image: np.ndarray | None = None,
    repeat: float = 1.0,
) -> ObjectMesh:
    """A square in the plane x = 0 that faces the front, u to the right and v downwards."""
    y, z = np.array([-half, half, half, -half]), np.array([-half, -half, half, half])
    tri = np.array([(0, 1, 2), (0, 2, 3)])
    return ObjectMesh(
        name="card",
        v_pos=np.stack([0 * y, y, z], 1).astype(np.float32),
        t_pos_idx=tri,
        v_tex=np.array([(0, 1), (1, 1), (1, 0), (0, 0)], np.float32) * repeat,
        t_tex_idx=tri.copy(),
        face_material=np.zeros(2, np.int64),
        rgb=np.array([rgb], np.float32),
        opacity=np.array([opacity], np.float32),
        image=np.array([-1 if image is None else 0]),
        images=() if image is None else (image,),
        parts=("paper",),
    )


def inside(size: int = 32, half: float = 0.5) -> slice:
    """Pixels that the card covers wholly."""
    reach = half * size / 2 / np.tan(np.deg2rad(FOVY_DEG / 2)) / DISTANCE
    return slice(int(np.ceil(size / 2 - reach)) + 1, int(np.floor(size / 2 + reach)) - 1)


def test_a_card_has_its_exact_size_and_colour() -> None:
    rgb, mask = render_rgb(ObjectGeometry(card()), camera(), background=WHITE, light=FLAT)
    side = 2 * 0.5 * 16 / np.tan(np.deg2rad(FOVY_DEG / 2)) / DISTANCE
    assert mask.sum() == pytest.approx(side**2, rel=0.03)
    core = inside()
    assert np.allclose(rgb[0, core, core], (0.2, 0.4, 0.6), atol=1e-5)
    assert np.allclose(rgb[0][mask[0] == 0], 1.0)


def test_buffers_are_exact_on_a_card() -> None:
    geometry = ObjectGeometry(card())
    for azimuth in (0.0, 180.0):  # both sides of the card look at the camera
        buffers = render_buffers(geometry, camera(azimuth_deg=azimuth), background=WHITE)
        core = inside()
        assert np.allclose(buffers.depth[0, core, core], DISTANCE, atol=1e-4)
        assert np.allclose(buffers.normal[0, core, core], (0, 0, 1), atol=1e-4)
        assert np.all(buffers.part[0, core, core] == 1)
        assert buffers.depth[0, 0, 0] == 0
        assert buffers.part[0, 0, 0] == 0


def test_an_image_is_upright_seen_from_the_front() -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[..., 3] = 255
    image[0, 0], image[0, 1] = (255, 0, 0, 255), (0, 255, 0, 255)
    image[1, 0], image[1, 1] = (0, 0, 255, 255), (255, 255, 0, 255)
    geometry = ObjectGeometry(card(image=image))
    rgb, _ = render_rgb(geometry, camera(64), background=WHITE, light=FLAT)
    quarter = 32 - 7, 32 + 7
    found = [rgb[0, row, column] for row in quarter for column in quarter]
    expected = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    assert np.allclose(found, expected, atol=0.12)


def test_coordinates_beyond_the_image_repeat_it() -> None:
    image = np.zeros((4, 4, 4), np.uint8)
    image[..., 3] = 255
    image[:, :2, 0] = 255
    once = ObjectGeometry(card(image=image)).surface_color
    weights = np.array([(0.2, 0.3, 0.5)])
    moved = replace(card(image=image), v_tex=card().v_tex + np.array([3, -2], np.float32))
    face = np.zeros(1, int)
    assert np.allclose(ObjectGeometry(moved).surface_color(face, weights), once(face, weights))


@pytest.mark.parametrize("opacity", [0.3, 0.5, 0.8])
def test_glass_covers_by_its_opacity(opacity: float) -> None:
    geometry = ObjectGeometry(card(opacity=opacity, rgb=(0, 0, 0)))
    rgb, mask = render_rgb(geometry, camera(), background=WHITE, light=FLAT)
    core = inside()
    assert mask[0, core, core].mean() == pytest.approx(opacity, abs=1 / 16)
    assert np.allclose(rgb[0, core, core], 1 - mask[0, core, core][..., None], atol=1e-5)


def test_holes_of_an_image_show_what_is_behind() -> None:
    image = np.full((8, 8, 4), 255, np.uint8)
    image[:, :4, 3] = 0  # the left half is cut out
    front = card(image=image)
    behind = card(half=0.45, rgb=(1, 0, 0))
    both = replace(
        front,
        v_pos=np.concatenate([front.v_pos, behind.v_pos - np.float32([0.1, 0, 0])]),
        t_pos_idx=np.concatenate([front.t_pos_idx, behind.t_pos_idx + 4]),
        t_tex_idx=np.concatenate([front.t_tex_idx, behind.t_tex_idx]),
        face_material=np.array([0, 0, 1, 1]),
        rgb=np.concatenate([front.rgb, behind.rgb]),
        opacity=np.ones(2, np.float32),
        image=np.array([0, -1]),
        parts=("leaf", "wall"),
    )
    buffers = render_buffers(ObjectGeometry(both), camera(64), background=BLACK, light=FLAT)
    assert buffers.part[0, 32, 24] == 2
    assert buffers.part[0, 32, 40] == 1
    assert np.allclose(buffers.rgb[0, 32, 24], (1, 0, 0), atol=1e-5)
    assert np.allclose(buffers.rgb[0, 32, 40], (1, 1, 1), atol=1e-5)
    assert buffers.depth[0, 32, 24] == pytest.approx(DISTANCE + 0.1, abs=1e-3)


def test_sheer_surfaces_that_are_solid_look_like_solid_ones() -> None:
    tilted = card()
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]], np.float32)
    tilted = replace(tilted, v_pos=tilted.v_pos @ turn.T)
    image = np.full((2, 2, 4), 255, np.uint8)
    image[..., :3] = (51, 102, 153)
    solid = render_buffers(ObjectGeometry(tilted), camera(), background=WHITE)
    nearly = replace(tilted, opacity=np.array([0.97], np.float32))  # drawn by the other path
    sheer = render_buffers(ObjectGeometry(nearly), camera(), background=WHITE)
    assert np.array_equal(solid.part, sheer.part)
    assert np.allclose(solid.depth, sheer.depth, atol=1e-4)
    assert np.allclose(solid.normal, sheer.normal, atol=1e-4)


def test_recolouring_keeps_light_and_dark() -> None:
    image = np.zeros((1, 2, 4), np.uint8)
    image[..., 3] = 255
    image[0, 0, :3], image[0, 1, :3] = 40, 80
    painted = ObjectGeometry(card(image=image), Recolor((0,), (0.6, 0.3, 0.0)))
    weights = np.eye(3)[[0, 1]]  # left and right edge, where both texels mix evenly
    assert np.allclose(painted.surface_color(np.zeros(2, int), weights), (0.6, 0.3, 0), atol=1e-5)
    dark, light = (painted.surface_color(np.zeros(1, int), np.array([w]))
                   for w in ((0.75, 0.25, 0.0), (0.25, 0.75, 0.0)))  # fmt: skip
    assert np.allclose(light, 2 * dark, atol=1e-5)
    other = ObjectGeometry(card(rgb=(0.1, 0.2, 0.3)), Recolor((), (1, 0, 0)))
    assert np.allclose(other.surface_color(np.zeros(1, int), weights[:1]), (0.1, 0.2, 0.3))


def test_light_from_one_side_is_brighter_there() -> None:
    side = Lighting(ambient=0.2, head=0.0, sky=0.0, key=0.8, key_direction=(1.0, 0.0, 0.0))
    core = inside()
    front, _ = render_rgb(ObjectGeometry(card()), camera(), background=WHITE, light=side)
    back, _ = render_rgb(
        ObjectGeometry(card()), camera(azimuth_deg=180.0), background=WHITE, light=side
    )
    assert np.allclose(front[0, core, core], (0.2, 0.4, 0.6), atol=1e-4)
    assert np.allclose(back[0, core, core], np.array([0.2, 0.4, 0.6]) * 0.2, atol=1e-4)


def test_views_do_not_depend_on_their_batch() -> None:
    geometry = ObjectGeometry(card(opacity=0.5))
    cameras = orbit_cameras(
        3, elevation_deg=20, distance=3, fovy_deg=40, height=24, width=24, azimuth_start_deg=-40
    )
    together, _ = render_rgb(geometry, cameras, background=WHITE)
    for k in range(3):
        alone, _ = render_rgb(geometry, cameras[k], background=WHITE)
        assert np.array_equal(alone[0], together[k])
