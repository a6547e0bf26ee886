"""Camera paths in nerfstudio's form."""

from __future__ import annotations

import json

import pytest
import torch

from renderers.cameras import orbit_cameras
from studio.camera_path import read_camera_path, write_camera_path
from studio.errors import ConfigError


def orbit(n_views: int = 5):
    return orbit_cameras(
        n_views, elevation_deg=20.0, distance=2.5, fovy_deg=40.0, height=48, width=64
    )


def test_round_trip_keeps_the_views(tmp_path):
    cameras = orbit()
    write_camera_path(tmp_path / "path.json", cameras, fps=30)
    read, fps = read_camera_path(tmp_path / "path.json")
    assert fps == 30
    assert (read.height, read.width) == (48, 64)
    torch.testing.assert_close(read.c2w, cameras.c2w)
    torch.testing.assert_close(read.fovy, cameras.fovy)
    torch.testing.assert_close(read.mvp(), cameras.mvp())
    torch.testing.assert_close(read.azimuth_deg % 360.0, cameras.azimuth_deg, atol=1e-3, rtol=0.0)
    torch.testing.assert_close(read.elevation_deg, cameras.elevation_deg, atol=1e-3, rtol=0.0)


def test_height_may_be_chosen_and_the_ratio_stays(tmp_path):
    write_camera_path(tmp_path / "path.json", orbit())
    read, _ = read_camera_path(tmp_path / "path.json", height=96)
    assert (read.height, read.width) == (96, 128)


def test_keys_are_nerfstudios(tmp_path):
    write_camera_path(tmp_path / "path.json", orbit(2))
    data = json.loads((tmp_path / "path.json").read_text())
    assert {"camera_type", "render_height", "render_width", "camera_path", "fps", "seconds"} <= set(
        data
    )
    assert set(data["camera_path"][0]) == {"camera_to_world", "fov", "aspect"}
    assert len(data["camera_path"][0]["camera_to_world"]) == 16
    assert data["camera_path"][0]["fov"] == pytest.approx(40.0)


WRONG = {
    "no JSON": "hello",
    "no cameras key": '{"render_height": 4, "render_width": 4}',
    "short matrix": '{"render_height": 4, "render_width": 4, "camera_path": '
    '[{"camera_to_world": [1, 2], "fov": 40}]}',
    "empty": '{"render_height": 4, "render_width": 4, "camera_path": []}',
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_files_that_are_no_camera_path_are_refused(tmp_path, text):
    path = tmp_path / "path.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"path\.json"):
        read_camera_path(path)


def changed(**changes):
    """A sound path of two cameras with some values changed; ``shot`` changes the second camera."""
    shot = {"camera_to_world": torch.eye(4).flatten().tolist(), "fov": 40}
    second = {**shot, **changes.pop("shot", {})}
    return {"render_height": 4, "render_width": 4, "camera_path": [shot, second], **changes}


def matrix(*diagonal: float) -> dict:
    return {"camera_to_world": torch.diag(torch.tensor([*diagonal, 1.0])).flatten().tolist()}


UNUSABLE = {
    "empty": (changed(camera_path=[]), "holds no cameras"),
    "scaled": (changed(shot=matrix(2.0, 2.0, 2.0)), "camera_to_world of camera 1"),
    "mirrored": (changed(shot=matrix(-1.0, 1.0, 1.0)), "camera_to_world of camera 1"),
    "not a number": (changed(shot=matrix(float("nan"), 1.0, 1.0)), "camera_to_world of camera 1"),
    "no angle": (changed(shot={"fov": 0}), "fov of camera 1 is 0"),
    "flat angle": (changed(shot={"fov": 180}), "fov of camera 1 is 180"),
    "no rows": (changed(render_height=0), "render_height is 0"),
    "no speed": (changed(fps=0), "fps is 0"),
    "endless rows": (changed(render_height=float("inf")), "is no camera path"),
    "worded speed": (changed(fps="fast"), "is no camera path"),
    "panorama": (changed(camera_type="equirectangular"), "expected perspective"),
    "list": ([1, 2], "is no camera path"),
}


@pytest.mark.parametrize(("data", "words"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_cameras_that_cannot_be_drawn_are_refused(tmp_path, data, words):
    path = tmp_path / "path.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=words):
        read_camera_path(path, height=8)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_camera_path(tmp_path / "none.json")
