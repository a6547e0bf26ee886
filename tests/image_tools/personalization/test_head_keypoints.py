"""Landmarks of a head in a scene: where cameras see them, and from where they are followed."""

from __future__ import annotations

import pytest
import torch

from image_tools.personalization.head_keypoints import (
    face_visibility,
    head_keypoints,
    head_points,
)
from image_tools.personalization.instant_id_configs import HeadConfig
from renderers.cameras import orbit_cameras

HEAD = HeadConfig(center=(0.0, 0.0, 0.2), height=1.0)


def _around(count: int = 8, **settings):
    values = {"elevation_deg": 0.0, "distance": 4.0, "fovy_deg": 40.0, "height": 64, "width": 64}
    return orbit_cameras(count, **{**values, **settings})


def test_from_the_front_it_is_a_face():
    """Eyes level and apart, nose between and below, mouth below the nose, all right way round."""
    kps = head_keypoints(_around(), HEAD)
    left, right, nose, mouth_left, mouth_right = kps.pixels(64, 64)[0]
    assert left[0] < nose[0] < right[0]
    assert mouth_left[0] < nose[0] < mouth_right[0]
    assert left[1] == pytest.approx(float(right[1]), abs=1e-4)
    assert left[1] < nose[1] < mouth_left[1]
    assert float(nose[0]) == pytest.approx(32.0, abs=1e-3)
    assert kps.seen[0].all()


def test_one_camera_in_front_by_hand():
    """Distance 4 along +x: a point (x, y, z) lands at y / (4 - x) and z / (4 - x)."""
    points = head_points(HeadConfig())
    kps = head_keypoints(_around(), HeadConfig())
    scale = 0.5 / torch.tan(torch.deg2rad(torch.tensor(20.0)))
    x = 0.5 + scale * points[:, 1] / (4.0 - points[:, 0])
    y = 0.5 - scale * points[:, 2] / (4.0 - points[:, 0])
    torch.testing.assert_close(kps.shares[0], torch.stack([x, y], dim=-1))


def test_landmarks_vanish_one_by_one_and_strength_fades():
    cameras = _around(24)
    kps = head_keypoints(cameras, HeadConfig())
    azimuth = cameras.azimuth_deg.tolist()
    seen = {round(a) % 360: row.tolist() for a, row in zip(azimuth, kps.seen, strict=True)}
    assert seen[180] == [False] * 5
    # From +y, which is the right of the picture seen from the front, the far eye is hidden.
    assert seen[90][0] is False
    assert seen[90][1] is True
    assert seen[270][:2] == [True, False]
    share = {round(a) % 360: float(v) for a, v in zip(azimuth, kps.visibility, strict=True)}
    assert share[0] == pytest.approx(1.0)
    assert share[30] == pytest.approx(share[330], abs=1e-5)
    assert 1.0 > share[15] > share[30] > share[60] > 0.0
    assert share[75] == pytest.approx(0.0, abs=1e-6)
    assert share[90] == share[180] == 0.0


def test_visibility_ends_at_75_degrees():
    angles = torch.tensor([0.0, 60.0, 74.0, 75.1, 120.0])
    shares = face_visibility(angles)
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx((0.5 - 0.258819) / (1.0 - 0.258819), abs=1e-5)
    assert shares[2] > 0.0
    assert shares[3:].tolist() == [0.0, 0.0]


def test_a_head_that_looks_elsewhere_is_seen_from_there():
    cameras = _around(4)
    turned = head_keypoints(cameras, HeadConfig(azimuth_deg=90.0))
    straight = head_keypoints(cameras, HeadConfig())
    torch.testing.assert_close(turned.shares[1], straight.shares[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.visibility[1], straight.visibility[0])
    assert turned.visibility[0] == 0.0


def test_landmarks_grow_with_the_head():
    small, large = head_points(HeadConfig(height=0.5)), head_points(HeadConfig(height=1.0))
    torch.testing.assert_close(large, 2.0 * small)
    with pytest.raises(ValueError, match=r"height is 0.0 - expected above 0"):
        HeadConfig(height=0.0)
