"""Camera paths as JSON, in the form of nerfstudio, which its Blender add-on reads and writes.

Both sides are right-handed with +z up and OpenGL camera axes, so matrices pass unchanged. ``fov``
is vertical, in degrees.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.cameras import Cameras
from studio.errors import ConfigError
from studio.run_folder import write_atomic

__all__ = ["read_camera_path", "write_camera_path"]

ORTHONORMAL = 1e-3
"""Largest error of the axes' products; files are written with few decimals."""


def read_camera_path(path: Path, *, height: int | None = None) -> tuple[Cameras, int]:
    """Cameras and frames per second.

    Args:
        path: the JSON file.
        height: image height in pixels; the file's ``render_height`` when None. The width follows
            from the file's ratio.

    Raises:
        ConfigError: the file is missing, is no JSON, lacks a key, or holds cameras that no
            perspective picture can be made with.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        shots = data["camera_path"]
        if not shots:
            raise ConfigError(f"{path} holds no cameras - expected at least one.")
        c2w = torch.tensor([shot["camera_to_world"] for shot in shots]).float().view(-1, 4, 4)
        fovy = torch.deg2rad(torch.tensor([float(shot["fov"]) for shot in shots]))
        rows, cols = int(data["render_height"]), int(data["render_width"])
        fps = int(data.get("fps", 24))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(
            f"{path} is no camera path ({error}) - expected JSON with render_height, render_width "
            "and camera_path: [{camera_to_world: 16 numbers, fov: degrees}, ...]."
        ) from error
    _check_numbers(path, rows=rows, cols=cols, fps=fps, kind=data.get("camera_type"))
    _check_cameras(path, c2w, fovy)
    rows, cols = (rows, cols) if height is None else (height, max(1, round(cols * height / rows)))
    return _cameras(c2w, fovy, rows, cols), fps


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


def _check_numbers(path: Path, *, rows: int, cols: int, fps: int, kind: str | None) -> None:
    """Refuse what is said of all cameras together."""
    for name, value in (("render_height", rows), ("render_width", cols), ("fps", fps)):
        if value < 1:
            raise ConfigError(f"{path}: {name} is {value} - expected at least 1.")
    if kind not in (None, "perspective"):
        raise ConfigError(
            f"{path}: camera_type is {kind!r} - expected perspective, the only one that is drawn. "
            "Export the path with perspective cameras."
        )


def _check_cameras(path: Path, c2w: Float[Tensor, "b 4 4"], fovy: Float[Tensor, " b"]) -> None:
    """Refuse views that are no pinhole cameras: rays take the rotation for orthonormal."""
    rotation = c2w[:, :3, :3]
    off = (rotation @ rotation.mT - torch.eye(3)).abs().amax(dim=(1, 2))
    # Written so that NaN is wrong, too.
    sound = (off < ORTHONORMAL) & (torch.linalg.det(rotation) > 0.0)
    sound &= torch.isfinite(c2w).all(dim=2).all(dim=1)
    if not sound.all():
        raise ConfigError(
            f"{path}: camera_to_world of camera {int((~sound).int().argmax())} is no rotation with "
            "a place - expected orthonormal axes, right-handed and without scale. Apply the "
            "camera's scale before exporting."
        )
    seen = (fovy > 0.0) & (fovy < math.pi)
    if not seen.all():
        wrong = int((~seen).int().argmax())
        raise ConfigError(
            f"{path}: fov of camera {wrong} is {math.degrees(float(fovy[wrong])):.4g} - expected "
            "degrees between 0 and 180."
        )


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
