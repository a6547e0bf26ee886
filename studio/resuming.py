"""Whether a run folder holds a given scene, and which run of a folder to go on with.

What a run makes depends on its resolved scene alone, so two runs are the same work when their
scenes agree in everything that shapes the result. Sweeps and benchmarks find their finished and
unfinished runs by that, whatever order or number of calls made them.
"""

from __future__ import annotations

import json
from pathlib import Path

from studio.config import Change, differences, dump, validate
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.run_folder import RunFolder, slug
from studio.scene_file import read_yaml

__all__ = [
    "FREE_ON_RESUME",
    "changed_keys",
    "changes_of",
    "find_run",
    "is_resumable",
    "scene_of",
    "work_of",
]

FREE_ON_RESUME = ("device", "export", "saving")
"""Keys that may differ when a run goes on: they do not change what is optimised."""
FINISHED = ("done", "failed", "diverged")
"""Statuses after which going on with a run would only repeat what happened."""


def scene_of(run: RunFolder) -> SceneConfig:
    """The resolved scene of a run.

    Raises:
        ConfigError: it is missing, or this version cannot read it.
    """
    tree, _ = read_yaml(run.resolved_path)
    return validate(SceneConfig, tree, where=str(run.resolved_path))


def work_of(scene: SceneConfig) -> str:
    """What a scene optimises, in a form that is equal for all scenes of which one run is made."""
    tree = {key: value for key, value in dump(scene).items() if key not in FREE_ON_RESUME}
    return json.dumps(tree, sort_keys=True)


def changes_of(before: SceneConfig, after: SceneConfig) -> list[Change]:
    """What differs between two scenes, without what may differ when a run goes on."""
    return [
        change
        for change in differences(dump(before), dump(after))
        if change.key.split(".")[0] not in FREE_ON_RESUME
    ]


def changed_keys(before: SceneConfig, after: SceneConfig) -> list[str]:
    """The keys of these changes."""
    return [change.key for change in changes_of(before, after)]


def is_resumable(run: RunFolder) -> bool:
    """Whether a run stopped on its way and left a checkpoint, or a subject, to go on from."""
    status = run.read_info().get("status")
    has_something = any(run.checkpoints_dir.glob("step-*")) or run.subject_dir.is_dir()
    return status not in FINISHED and has_something


def find_run(out: Path, scene: SceneConfig) -> RunFolder | None:
    """The run of ``scene`` under ``out``: the newest finished one, else the newest to go on with.

    Runs of the same prompt with other settings are passed over, and so are those that stopped
    before their first checkpoint: there is nothing in them.
    """
    found = []
    for info in (out / slug(scene.prompt)).glob("*/run.json"):
        run = RunFolder(info.parent)
        try:
            same = not changed_keys(scene_of(run), scene)
            useful = run.read_info().get("status") in FINISHED or is_resumable(run)
        except ConfigError:  # of another version, or damaged: not this scene
            continue
        if same and useful:
            found.append(run)
    if not found:
        return None
    order = ("done", None, "diverged", "failed")
    return min(found, key=lambda run: (order.index(_group(run)), -run.info_path.stat().st_mtime))


def _group(run: RunFolder) -> str | None:
    """The status of a finished run, None for one to go on with."""
    status = run.read_info().get("status")
    return status if status in FINISHED else None
