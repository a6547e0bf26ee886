"""How every run of a scene begins: its folder, what it was made from, and what differs from the
preset."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from studio.config import Scene, dump_yaml
from studio.progress import say
from studio.run_folder import SUBFOLDERS, RunFolder, create_run, storage_errors, write_atomic

__all__ = ["begin_run", "made_with", "short", "tell_changes"]

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "numba", "trimesh")


def begin_run(scene: Scene, out: Path, *, folders: Sequence[str] = SUBFOLDERS) -> RunFolder:
    """Make the run folder and record what is about to happen in it.

    Raises:
        StorageError: ``out`` cannot be written.
    """
    config = scene.config
    info = {
        "task": config.task,
        **made_with(PACKAGES),
    }
    run = create_run(
        out, prompt=config.prompt, method=scene.name, seed=config.seed, info=info, folders=folders
    )
    with storage_errors(run.path, "write"):
        write_atomic(run.scene_path, scene.text)
        write_atomic(run.resolved_path, dump_yaml(config))
    say(f"{config.prompt!r}, preset {scene.name}, seed {config.seed} -> {run.path}")
    tell_changes(scene)
    return run


def made_with(packages: Sequence[str]) -> dict[str, Any]:
    """What `run.json` says of the command and the programs behind a run."""
    return {
        "argv": sys.argv[1:],
        "version": _version("text-to-3d-studio"),
        "git": _git_commit(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in packages},
    }


def tell_changes(scene: Scene) -> None:
    """The difference from the preset, one line each, on stderr."""
    for change in scene.changes:
        say(f"  {change.key}: {short(change.old)} -> {short(change.new)}")


def short(value: Any, limit: int = 100) -> str:
    """A value on one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _version(package: str) -> str | None:
    """Installed version of a package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of this checkout, or None outside of one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
