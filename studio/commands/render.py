"""`studio render`: stills and films of a trained run, from a turntable or a camera path."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from studio.errors import ConfigError
from studio.progress import make_progress
from studio.run_folder import RunFolder, glb_command, open_run

if TYPE_CHECKING:
    from renderers.cameras import Cameras
    from studio.stages import LoadedStage
    from studio.video import Render

__all__ = ["run"]

FILMS = ("mp4", "gif")
"""What --video accepts."""
MAX_SIZE, MAX_FRAMES = 4096, 10_000
TURNTABLE, FRAMES, SIZE = "turntable", 60, 256


def run(
    path: Path,
    *,
    source: str = "field",
    camera: str = "turntable",
    frames: int | None = None,
    size: int | None = None,
    outputs: str = "comp_rgb",
    video: str = "mp4",
    stills: bool = False,
    device: str = "cpu",
    as_json: bool = False,
) -> None:
    """Render, and print the files.

    Args:
        path: the run folder.
        source: the trained field, or the exported asset (much faster).
        camera: ``turntable``, or a camera path as JSON.
        frames: views of the turntable; 60 when None.
        size: image height in pixels; when None 256, or the camera path's own.
        outputs: comma-separated, of comp_rgb, normal, depth, opacity; side by side.
        video: comma-separated, of mp4, gif; empty for none.
        stills: also write every view as PNG.
        device: where the field is evaluated.
        as_json: print the paths as JSON.

    Raises:
        StudioError: a wrong value, no checkpoint, no space.
    """
    folder = open_run(path)
    films = _choices("--video", video, FILMS)
    _check("--size", size, MAX_SIZE)
    _check("--frames", frames, MAX_FRAMES)
    if frames is not None and camera != TURNTABLE:
        raise ConfigError(
            f"--frames is {frames} with a camera path, which has views of its own - expected it "
            "with the turntable alone. Leave it out."
        )
    if not films and not stills:
        raise ConfigError("Nothing to write: --video is empty. Name mp4 or gif, or add --stills.")

    from studio.device import resolve_device
    from studio.stages import load_stage
    from studio.video import Picture

    kinds = _choices("--outputs", outputs, Picture.__args__)
    stage = load_stage(folder, resolve_device(device))
    render = _renderer(source, folder, stage)
    cameras, fps, name = _cameras(camera, stage, source, frames=frames, size=size)
    files = _write(folder, render, cameras, kinds, films=films, stills=stills, fps=fps, name=name)
    if as_json:
        sys.stdout.write(json.dumps({kind: str(file) for kind, file in files.items()}) + "\n")
        return
    for kind, file in files.items():
        sys.stdout.write(f"{kind:<10} {file}\n")


def _check(name: str, value: int | None, most: int) -> None:
    """Refuse counts that make no sense."""
    if value is not None and not 1 <= value <= most:
        raise ConfigError(f"{name} is {value} - expected 1 to {most}.")


def _choices(name: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    """The items of a comma-separated list."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    wrong = [item for item in items if item not in allowed]
    if wrong:
        raise ConfigError(f"{name}: unknown {wrong[0]!r} - expected some of {', '.join(allowed)}.")
    return items


def _cameras(
    camera: str, stage: LoadedStage, source: str, *, frames: int | None, size: int | None
) -> tuple[Cameras, int, str]:
    """The views, the film's speed, and the name of the files."""
    from studio.camera_path import read_camera_path
    from studio.turntable import orbit_of

    # A run's own film shows its asset; those of the field lie beside it.
    ending = "" if source == "asset" else "_field"
    if camera == TURNTABLE:
        count = frames or FRAMES
        fps = max(1, round(count / 4))
        return orbit_of(stage, count, size=size or SIZE), fps, TURNTABLE + ending
    cameras, fps = read_camera_path(Path(camera), height=size)
    return cameras, fps, Path(camera).stem + ending


def _renderer(source: str, folder: RunFolder, stage: LoadedStage) -> Render:
    """Who makes the pictures."""
    from studio.evaluation.assets import asset_glb
    from studio.export.read import load_asset
    from studio.turntable import asset_render, field_render

    if source == "field":
        return field_render(stage)
    if source == "asset":
        glb = asset_glb(folder)
        if glb is None:
            raise ConfigError(
                f"{folder.path} has no GLB - expected one to render. Make it with: "
                f"{glb_command(folder)}"
            )
        return asset_render(load_asset(glb))
    raise ConfigError(f"--source: unknown {source!r} - expected field or asset.")


def _write(
    folder: RunFolder,
    render: Render,
    cameras: Cameras,
    kinds: list[str],
    *,
    films: list[str],
    stills: bool,
    fps: int,
    name: str,
) -> dict[str, Path]:
    """Render once, write everything."""
    import torch

    from studio.previews import save_png
    from studio.video import render_frames, write_gif, write_mp4

    progress = make_progress(len(cameras), 0)
    try:
        frames = list(
            render_frames(
                render, cameras, kinds=kinds, done=lambda n: progress.update(n, "render", {})
            )
        )
    finally:
        progress.close()
    files: dict[str, Path] = {}
    if "mp4" in films:
        files["mp4"] = folder.renders_dir / f"{name}.mp4"
        write_mp4(files["mp4"], frames, fps=fps)
    if "gif" in films:
        files["gif"] = folder.renders_dir / f"{name}.gif"
        write_gif(files["gif"], frames, fps=fps)
    if stills:
        info = folder.read_info()
        settings = {key: info.get(key) for key in ("prompt", "seed", "method")}
        files["stills"] = folder.renders_dir / f"{name}_views"
        for outdated in files["stills"].glob("*.png"):
            outdated.unlink()
        for index, frame in enumerate(frames):
            image = torch.from_numpy(frame).float() / 255.0
            save_png(files["stills"] / f"{index:03d}.png", image, {**settings, "view": index})
    return files
