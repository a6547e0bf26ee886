"""The end of a run: asset, pictures, report.

The turntable shows the exported asset, which takes seconds; the contact sheet sets it beside the
field it was made from, so that a bad surface or texture is seen at once.

    paths = finish_run(run, device="cpu")
    result = write_asset(run, ExportConfig(max_faces=2000))  # once more, with other settings
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from renderers.fields.painted_mesh import PaintedMeshField
from renderers.fields.tet_mesh import TetMeshField
from renderers.materials import ALBEDO
from studio.contact_sheet import contact_sheet, view_names
from studio.errors import StudioError
from studio.export.configs import ExportConfig
from studio.export.pipeline import ExportResult, export_run
from studio.export.read import load_asset
from studio.previews import save_png
from studio.report import write_report
from studio.run_folder import RunFolder
from studio.stages import LoadedStage, load_stage
from studio.turntable import asset_render, field_render, orbit_of
from studio.video import picture, render_frames, write_gif, write_mp4

__all__ = ["compare_views", "finish_run", "write_asset", "write_turntable"]

FILM_NAME, GIF_NAME, SHEET_NAME = "turntable.mp4", "turntable.gif", "contact_sheet.png"
FILM_FPS = 24
# The GIF shows every second pixel of every second frame.
GIF_STEP = 2
SHEET_VIEWS, SHEET_SIZE = 4, 192


def finish_run(
    run: RunFolder, *, device: str = "cpu", progress: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """Export a trained run, film it and report on it; notes everything in ``run.json``.

    A report is written even when the export fails: it shows the error and the previews.

    Args:
        run: the run folder.
        device: where the field is evaluated.
        progress: told what begins.

    Returns:
        The paths of ``asset``, ``turntable`` and ``report``.

    Raises:
        EmptyGeometry: the field has no surface.
        StorageError: the run folder cannot be written.
    """
    start = time.perf_counter()
    paths: dict[str, Path] = {}
    try:
        result = write_asset(run, device=device, progress=progress)
        if "glb" in result.files:
            paths["asset"] = run.asset_dir / result.files["glb"]
            paths["turntable"] = run.renders_dir / FILM_NAME
    except StudioError as error:
        run.update_info({"status": "failed", "error": str(error)})
        write_report(run)
        raise
    seconds = dict(run.read_info().get("seconds") or {})
    seconds["finish"] = round(time.perf_counter() - start, 3)
    run.update_info({"status": "done", "error": None, "seconds": seconds})
    progress("report")
    paths["report"] = write_report(run)
    return paths


def write_asset(
    run: RunFolder,
    config: ExportConfig | None = None,
    *,
    device: str = "cpu",
    progress: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Export a trained run and picture what was exported; pictures of an earlier asset go.

    Args:
        run: the run folder.
        config: export settings; those of the run's scene when None.
        device: where the field is evaluated.
        progress: told what begins.

    Raises:
        EmptyGeometry: the field has no surface.
        StorageError: the run folder cannot be written.
    """
    result = export_run(run, config, device=device, progress=progress)
    if "glb" in result.files:
        stage = load_stage(run, device, particle=None if config is None else config.particle)
        progress("turntable")
        write_turntable(run, stage)
        progress("contact sheet")
        compare_views(run, stage)
    else:
        for name in (FILM_NAME, GIF_NAME, SHEET_NAME):
            (run.renders_dir / name).unlink(missing_ok=True)
    return result


def write_turntable(run: RunFolder, stage: LoadedStage) -> Path:
    """Film the exported asset as MP4 and GIF; returns the MP4."""
    render = asset_render(load_asset(run.asset_dir / "asset.glb"))
    config = stage.config.export
    cameras = orbit_of(stage, config.film_frames, size=config.film_size)
    frames = list(render_frames(render, cameras))
    film = run.renders_dir / FILM_NAME
    write_mp4(film, frames, fps=FILM_FPS)
    small = [frame[::GIF_STEP, ::GIF_STEP] for frame in frames[::GIF_STEP]]
    write_gif(run.renders_dir / GIF_NAME, small, fps=FILM_FPS // GIF_STEP)
    return film


@torch.no_grad()
def compare_views(run: RunFolder, stage: LoadedStage) -> Path:
    """Contact sheet of four views: what was trained, the asset unlit and lit, and its normals."""
    mesh = load_asset(run.asset_dir / "asset.glb")
    cameras = orbit_of(stage, SHEET_VIEWS, size=SHEET_SIZE)
    field = picture(field_render(stage)(cameras), "comp_rgb", cameras).cpu()
    unlit = asset_render(mesh, shading=ALBEDO)(cameras)
    lit = asset_render(mesh)(cameras)
    is_mesh = isinstance(stage.field, TetMeshField | PaintedMeshField)
    trained = "mesh" if is_mesh else "field"
    columns = {
        trained: field,
        "asset, unlit": picture(unlit, "comp_rgb", cameras),
        "asset, lit": picture(lit, "comp_rgb", cameras),
        "asset, normals": picture(lit, "normal", cameras),
    }
    info = run.read_info()
    settings = {key: info.get(key) for key in ("prompt", "seed", "method", "version")}
    sheet = contact_sheet(
        [[images[view] for images in columns.values()] for view in range(len(cameras))],
        rows=view_names(cameras.azimuth_deg),
        columns=list(columns),
        title=str(settings["prompt"] or ""),
        subtitle=f"{settings['method']} · seed {settings['seed']} · step {stage.step}",
    )
    path = run.renders_dir / SHEET_NAME
    save_png(path, sheet, settings)
    return path
