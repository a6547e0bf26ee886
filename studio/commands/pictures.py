"""`studio run` of a scene that makes pictures: checks, a run folder, and where the results are."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from studio.commands.begin import begin_run, tell_changes
from studio.config import Scene, dump, dump_yaml
from studio.errors import StorageError
from studio.run_folder import RunFolder
from studio.stop_request import terminate_as_interrupt
from studio.waiting import settle_waiting

__all__ = ["run"]


def run(scene: Scene, *, out: Path, dry_run: bool = False, as_json: bool = False) -> None:
    """Draw, and print where the results are.

    Args:
        scene: of a task that makes pictures.
        out: folder of all runs.
        dry_run: print the resolved scene only.
        as_json: print the results as JSON.

    Raises:
        StudioError: anything a user can cause or cure.
    """
    config = scene.config
    if dry_run:
        tell_changes(scene)
        sys.stdout.write(json.dumps(dump(config)) + "\n" if as_json else dump_yaml(config))
        return
    settle_waiting()
    from image_tools.diffusion.layout import find_prior_files
    from image_tools.pocket.paths import adapter_path
    from studio.device import resolve_device
    from studio.images.adapters import named_adapters
    from studio.images.picture_run import make_pictures
    from studio.images.reading import check_pictures
    from studio.report import write_report

    resolve_device(config.device)  # refuse before a folder is made
    check_pictures(config)
    for key, name in named_adapters(config):
        adapter_path(name, role=key)
    find_prior_files(config.prior)
    folder = begin_run(scene, out, folders=("images",))
    try:
        with terminate_as_interrupt():
            files = make_pictures(config, folder)
        files["report"] = write_report(folder)
    finally:
        with contextlib.suppress(StorageError):  # whatever ended the run is the error to show
            folder.add_to_index()
    _print(folder, files, as_json)


def _print(folder: RunFolder, files: dict[str, Path], as_json: bool) -> None:
    """Results on stdout; the last line is the file to open."""
    paths = {name: str(path) for name, path in files.items()}
    if as_json:
        info = folder.read_info()
        values = {key: info.get(key) for key in ("status", "prompt", "seed", "seconds")}
        sys.stdout.write(json.dumps({"run": str(folder.path), **values, "files": paths}) + "\n")
        return
    sys.stdout.write(f"run        {folder.path}\n")
    for name, path in paths.items():
        sys.stdout.write(f"{name:<10} {path}\n")
