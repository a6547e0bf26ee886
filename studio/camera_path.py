"""Camera paths as JSON, in the form of nerfstudio, which its Blender add-on reads and writes.

Both sides are right-handed with +z up and OpenGL camera axes, so matrices pass unchanged. ``fov``
is vertical, in degrees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from renderers.cameras import Cameras
from studio.errors import ConfigError
from studio.run_folder import write_atomic

__all__ = ["read_camera_path", "write_camera_path"]


def read_camera_path(path: Path, *, height: int | None = None) -> tuple[Cameras, int]:
    """Cameras and frames per second.

    Args:
        path: the JSON file.
        height: image height in pixels; the file's ``render_height`` when None. The width follows
            from the file's ratio.

    Raises:
        ConfigError: the file is missing, is no JSON, or lacks a key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        shots = data["camera_path"]
        c2w = torch.tensor([shot["camera_to_world"] for shot in shots]).float().view(-1, 4, 4)
        fovy = torch.deg2rad(torch.tensor([float(shot["fov"]) for shot in shots]))
        rows, cols = int(data["render_height"]), int(data["render_width"])
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{path} is no camera path ({error}) - expected JSON with render_height, render_width "
            "and camera_path: [{camera_to_world: 16 numbers, fov: degrees}, ...]."
        ) from error
    if not len(c2w):
        raise ConfigError(f"{path} holds no cameras - expected at least one.")
    rows, cols = (rows, cols) if height is None else (height, max(1, round(cols * height / rows)))
    return _cameras(c2w, fovy, rows, cols), int(data.get("fps", 24))


def write_camera_path(path: Path, cameras: Cameras, *, fps: int = 24) -> None:
    """Write the cameras' true poses."""
    fovy_deg = torch.rad2deg(cameras.fovy).tolist()
    shots: list[dict[str, Any]] = [
        {
            "camera_to_world": c2w.flatten().tolist(),
            "fov": fov,
            "aspect": cameras.width / cameras.height,
        }
        for c2w, fov in zip(cameras.c2w, fovy_deg, strict=True)
    ]
    data = {
        "camera_type": "perspective",
        "render_height": cameras.height,
        "render_width": cameras.width,
        "fps": fps,
        "seconds": len(shots) / fps,
        "camera_path": shots,
    }
    write_atomic(path, json.dumps(data, indent=1) + "\n")


def _cameras(c2w: torch.Tensor, fovy: torch.Tensor, height: int, width: int) -> Cameras:
    """Cameras with their nominal angles read off their positions; the light is at the camera."""
    position = c2w[:, :3, 3]
    distance = position.norm(dim=-1)
    flat = position[:, :2].norm(dim=-1)
    return Cameras(
        c2w=c2w,
        fovy=fovy,
        azimuth_deg=torch.rad2deg(torch.atan2(position[:, 1], position[:, 0])),
        elevation_deg=torch.rad2deg(torch.atan2(position[:, 2], flat)),
        camera_distance=distance,
        light_position=position,
        height=height,
        width=width,
    )
