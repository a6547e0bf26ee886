"""Films and the pictures they are made of."""

from __future__ import annotations

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from renderers.cameras import Cameras, orbit_cameras
from renderers.outputs import RenderOutput
from studio.errors import ConfigError, StorageError
from studio.video import picture, render_frames, write_gif, write_mp4


def colours(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frames of one colour each, from red to blue."""
    ramp = np.linspace(0, 255, count).astype(np.uint8)
    return [
        np.broadcast_to([255 - level, 30, level], (height, width, 3)).astype(np.uint8)
        for level in ramp
    ]


def read_mp4(path) -> tuple[dict, list[np.ndarray]]:
    """Metadata and decoded frames."""
    reader = imageio_ffmpeg.read_frames(str(path))
    info = next(reader)
    width, height = info["size"]
    return info, [np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader]


def test_mp4_keeps_frames_size_and_colours(tmp_path):
    frames = colours(12)
    write_mp4(tmp_path / "film.mp4", frames, fps=12)
    info, decoded = read_mp4(tmp_path / "film.mp4")
    assert info["size"] == (48, 32)
    assert info["fps"] == 12.0
    assert len(decoded) == 12
    for frame, seen in zip(frames, decoded, strict=True):
        assert np.abs(seen.astype(int) - frame).mean() < 12


def test_odd_sizes_are_padded_to_even(tmp_path):
    write_mp4(tmp_path / "film.mp4", colours(3, height=31, width=45))
    assert read_mp4(tmp_path / "film.mp4")[0]["size"] == (46, 32)


def test_gif_loops_and_keeps_frames(tmp_path):
    frames = colours(10)
    write_gif(tmp_path / "film.gif", frames, fps=10)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.info["loop"] == 0
        # Neighbours that look alike after quantising are one longer frame.
        assert 5 <= film.n_frames <= 10
        milliseconds = 0
        for index in range(film.n_frames):
            film.seek(index)
            milliseconds += film.info["duration"]
        assert milliseconds == 1000
        last = np.array(film.convert("RGB"))
    assert np.abs(last.astype(int) - frames[9]).max() < 16


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_no_frames_is_an_error_and_leaves_nothing(tmp_path, write):
    with pytest.raises(ConfigError, match="no frames"):
        write(tmp_path / "film.mp4", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_mp4, write_gif])
def test_folder_that_is_a_file_is_one_clear_error(tmp_path, write):
    (tmp_path / "renders").write_text("in the way")
    with pytest.raises(StorageError, match="Cannot write"):
        write(tmp_path / "renders" / "film.gif", colours(2))


def test_failing_renderer_leaves_no_half_film(tmp_path):
    def frames():
        yield colours(1)[0]
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_mp4(tmp_path / "film.mp4", frames())
    assert list(tmp_path.iterdir()) == []


def orbit(n_views: int) -> Cameras:
    return orbit_cameras(n_views, elevation_deg=0.0, distance=3.0, fovy_deg=40.0, height=8, width=8)


def half_wall(cameras: Cameras) -> RenderOutput:
    """A wall at distance 3 in the left half of every image; its colour tells the azimuth."""
    b = len(cameras)
    opacity = torch.zeros(b, 8, 8, 1)
    opacity[:, :, :4] = 1.0
    colour = (cameras.azimuth_deg / 360.0)[:, None, None, None].expand(b, 8, 8, 3)
    normal = torch.tensor([1.0, 0.0, 0.0]).expand(b, 8, 8, 3)
    white = torch.ones(b, 8, 8, 3)
    return RenderOutput(
        comp_rgb=torch.lerp(white, colour, opacity),
        opacity=opacity,
        depth=3.0 * opacity,
        comp_rgb_bg=white,
        normal=normal,
    )


def test_pictures_are_white_where_nothing_is():
    cameras = orbit(1)
    output = half_wall(cameras)
    for kind in ("comp_rgb", "normal", "depth"):
        image = picture(output, kind, cameras)
        torch.testing.assert_close(image[:, :, 4:], torch.ones(1, 8, 4, 3))
    assert picture(output, "opacity", cameras)[0, 0, 7].tolist() == [0.0, 0.0, 0.0]


def test_depth_is_on_the_scale_of_the_scene_and_normals_are_coloured():
    cameras = orbit(1)
    output = half_wall(cameras)
    middle = picture(output, "depth", cameras)[0, 0, 0]
    torch.testing.assert_close(middle, torch.full((3,), 0.1 + 0.75 * 0.5))
    facing = picture(output, "normal", cameras)[0, 0, 0]
    torch.testing.assert_close(facing, torch.tensor([1.0, 0.5, 0.5]))


def test_unknown_picture_names_the_choices():
    cameras = orbit(1)
    with pytest.raises(ConfigError, match="comp_rgb, normal, depth, opacity"):
        picture(half_wall(cameras), "nomral", cameras)


def test_frames_come_in_order_with_pictures_side_by_side():
    done = []
    frames = list(
        render_frames(half_wall, orbit(4), kinds=("comp_rgb", "opacity"), done=done.append)
    )
    assert done == [1, 2, 3, 4]
    assert {frame.shape for frame in frames} == {(8, 16, 3)}
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 64, 128, 191]
    assert frames[0][0, 8].tolist() == [255, 255, 255]
