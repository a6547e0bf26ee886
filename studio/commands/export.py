"""`studio export`: write a trained run's asset again, with other settings.

Its pictures and the report follow, so that a run folder never shows another asset than it holds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from studio.config import dump, load_scene, validate
from studio.export.configs import ExportConfig
from studio.progress import say
from studio.run_folder import open_run

__all__ = ["run"]


def run(
    path: Path,
    *,
    formats: str | None = None,
    threshold: str | None = None,
    faces: int | None = None,
    texture: int | None = None,
    remesh: str | None = None,
    up: str | None = None,
    height_m: float | None = None,
    particle: int | None = None,
    device: str = "cpu",
    as_json: bool = False,
) -> None:
    """Export, and print the files.

    Args:
        path: the run folder.
        formats: comma-separated, of glb, obj, ply.
        threshold: a density, or ``auto``.
        faces: triangles after decimation.
        texture: side of the texture in pixels; 0 for vertex colours.
        remesh: none, isotropic (pymeshlab) or poisson (open3d).
        up: up axis of OBJ and PLY.
        height_m: height of the object in metres.
        particle: which of the last stage's particles, counted from 0.
        device: where the field is evaluated.
        as_json: print the result as JSON.

    Raises:
        StudioError: a wrong value, no checkpoint, no surface, no space.
    """
    folder = open_run(path)
    tree = dump(load_scene(str(folder.resolved_path)).config.export)
    asked = {
        "threshold": threshold,
        "max_faces": faces,
        "texture_size": texture or None,
        "appearance": _appearance(tree, texture),
        "remesh": remesh,
        "up": up,
        "height_m": height_m,
        "particle": particle,
    }
    if formats is not None:
        tree["formats"] = [name.strip() for name in formats.split(",") if name.strip()]
    overrides = [f"{key}={value}" for key, value in asked.items() if value is not None]
    config = validate(ExportConfig, tree, overrides, where="studio export")

    from studio.device import resolve_device
    from studio.finish import write_asset
    from studio.report import write_report

    chosen = str(resolve_device(device))
    before = folder.read_info().get("export", {}).get("files", {})
    result = write_asset(folder, config, device=chosen, progress=lambda step: say(f"  {step}"))
    gone = sorted(set(before.values()) - set(result.files.values()))
    if gone:
        say(f"Gone with the export before: {', '.join(gone)} (--format names all that is wanted).")
    folder.update_info({"status": "done", "error": None})
    folder.add_to_index()
    files = {kind: str(folder.asset_dir / name) for kind, name in result.files.items()}
    files["report"] = str(write_report(folder))
    if result.silhouette_iou is not None:
        agreement = f"{100 * result.silhouette_iou:.0f} % of the rendered silhouettes"
        say(f"Surface at density {result.threshold:.3g}: {agreement}.")
    for problem in result.problems:
        say(f"warning: GLB check: {problem}")
    if as_json:
        sys.stdout.write(json.dumps({**result.as_dict(), "files": files}) + "\n")
        return
    for kind, file in files.items():
        sys.stdout.write(f"{kind:<10} {file}\n")


def _appearance(tree: dict[str, Any], texture: int | None) -> str | None:
    """What the size of a texture says of how colours are kept: nothing if it is not given."""
    if texture is None:
        return None
    if texture == 0:
        return "vertex"
    return ExportConfig().appearance if tree["appearance"] == "vertex" else None
