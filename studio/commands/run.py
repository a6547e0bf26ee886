"""`studio run`: from a prompt or a scene file to an asset, or on with an interrupted run."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studio.commands import personalize, pictures
from studio.commands.begin import begin_run, short, tell_changes
from studio.commands.personalize import is_personalization
from studio.config import (
    Change,
    Scene,
    dump,
    dump_yaml,
    load_scene,
    load_task,
    split_arguments,
    validate,
)
from studio.configs import SceneConfig
from studio.edit_configs import check_edit
from studio.errors import ConfigError, Interrupted, StorageError
from studio.folder_lock import hold_run
from studio.progress import format_seconds, logged_to, say
from studio.resuming import changes_of
from studio.run_folder import RunFolder, open_run, storage_errors, write_atomic
from studio.scene_file import read_yaml
from studio.scene_inputs import check_inputs, check_priors
from studio.stop_request import terminate_as_interrupt
from studio.suggestions import command
from studio.task_configs import task_class
from studio.waiting import settle_waiting

if TYPE_CHECKING:
    from studio.runner import Runner

__all__ = ["run"]

LOGS = ("csv", "tensorboard")
"""What --log accepts."""
MOST_CHANGES, MOST_LETTERS = 5, 60
"""How much is told of what differs from a run that should go on."""
Watcher = Callable[[RunFolder], AbstractContextManager]
"""Follows a run from its folder while it goes on."""


@dataclass(frozen=True)
class Prepared:
    """A run folder and the scene to optimise in it."""

    run: RunFolder
    scene: SceneConfig


def run(
    arguments: Sequence[str],
    *,
    out: Path,
    resume: Path | None = None,
    dry_run: bool = False,
    evaluate: bool = False,
    log: str = "csv",
    view: bool = False,
    as_json: bool = False,
) -> None:
    """Optimise, export, render and report; print where the results are.

    Args:
        arguments: a scene (file, preset or prompt) and ``key.path=value`` overrides.
        out: folder of all runs.
        resume: a run folder to go on with.
        dry_run: print the resolved scene only.
        evaluate: measure the asset against the true object, as studio eval does.
        log: comma-separated: csv (always written), tensorboard.
        view: serve a page about the run while it goes on.
        as_json: print the results as JSON.

    Raises:
        StudioError: anything a user can cause or cure.
    """
    source, overrides = split_arguments(arguments)
    if is_personalization(source, resume):
        _refuse_for_pictures(personalize.TASK, evaluate=evaluate, log=log, view=view)
        personalize.run(arguments, out=out, resume=resume, dry_run=dry_run, as_json=as_json)
        return
    given = None if resume is not None else load_task(source, overrides)
    if given is not None and not isinstance(given.config, SceneConfig):
        _refuse_for_pictures(given.config.task, evaluate=evaluate, log=log, view=view)
        pictures.run(given, out=out, dry_run=dry_run, as_json=as_json)
        return
    if dry_run:
        scene = _dry_scene(source, overrides, resume)
        text = dump_yaml(scene)
        sys.stdout.write(json.dumps(dump(scene)) + "\n" if as_json else text)
        return
    watchers = _watchers(log, view)  # refuse before anything is made
    settle_waiting()
    with contextlib.ExitStack() as held:
        if resume is not None:
            held.enter_context(hold_run(open_run(resume)))  # before anything of it is written anew
            prepared = _continue(resume, source, overrides)
        else:
            prepared = _start(given, out)
            held.enter_context(hold_run(prepared.run))
        with terminate_as_interrupt():
            files = _make(prepared, watchers, evaluate=evaluate)
    _print_results(prepared.run, files, as_json)


def _refuse_for_pictures(task: str, *, evaluate: bool, log: str, view: bool) -> None:
    """Options of 3D runs make no sense where pictures are made."""
    wanted = {"--eval": evaluate, "--log": log != LOGS[0], "--view": view}
    given = [option for option, is_given in wanted.items() if is_given]
    if given:
        raise ConfigError(
            f"{given[0]}: is for runs that make an asset, and task {task} makes none - "
            "expected the scene alone. Leave the option out."
        )


def _watchers(log: str, view: bool) -> list[Watcher]:
    """What follows the run while it goes on, each opened with its folder.

    Raises:
        ConfigError: a log that does not exist.
        BackendMissing: tensorboard is not installed.
    """
    names = [name.strip() for name in log.split(",") if name.strip()]
    wrong = [name for name in names if name not in LOGS]
    if wrong:
        raise ConfigError(f"--log: unknown {wrong[0]!r} - expected some of {', '.join(LOGS)}.")
    found: list[Watcher] = []
    if "tensorboard" in names:
        from studio.tensorboard_log import TensorboardLog, check_tensorboard

        check_tensorboard()
        found.append(TensorboardLog)
    if view:
        from studio.live_page import live_page

        found.append(live_page)
    return found


def _make(prepared: Prepared, watchers: Sequence[Watcher], *, evaluate: bool) -> dict[str, str]:
    """Everything from the first step to the report; the run is listed however it ends."""
    try:
        with contextlib.ExitStack() as stack:
            for watcher in watchers:
                stack.enter_context(watcher(prepared.run))
            device = _optimise(prepared)
            gc.collect()  # a prior can fill a card, and knows of its parts in circles
            files = _finish(prepared.run, device)
            if evaluate:
                _evaluate(prepared.run)
    finally:
        with contextlib.suppress(StorageError):  # whatever ended the run is the error to show
            prepared.run.add_to_index()
    return files


def _optimise(prepared: Prepared) -> str:
    """All steps that are left; returns the device's name and lets go of the rest."""
    runner = _load(prepared)
    runner.optimise()
    say(f"Optimised in {format_seconds(runner.seconds['optimise'])}.")
    return str(runner.device)


def _load(prepared: Prepared) -> Runner:
    """The runner with its prior; a run that cannot begin is marked as failed.

    Raises:
        Interrupted: after Ctrl-C, or what the runner raises.
    """
    from studio.runner import Runner

    run = prepared.run
    try:
        try:
            return Runner(prepared.scene, run)
        except KeyboardInterrupt:
            raise Interrupted(
                "Stopped before the first step of this call. Go on with: "
                f"{command('run', '--resume', run.path)}"
            ) from None
    except Exception as error:
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        with contextlib.suppress(StorageError):
            run.update_info({"status": status, "error": str(error)})
        raise


def _dry_scene(source: str | None, overrides: list[str], resume: Path | None) -> SceneConfig:
    """The scene that a run would optimise."""
    if resume is not None:
        return _resumed_scene(open_run(resume), source, overrides)
    scene = load_scene(source, overrides)
    tell_changes(scene)
    return scene.config


# --- starting and continuing ----------------------------------------------------------------------


def _start(scene: Scene, out: Path) -> Prepared:
    """Make the run folder and record what is about to happen in it."""
    from studio.device import resolve_device
    from studio.export.remesh import check_remesh

    config = scene.config
    resolve_device(config.device)  # refuse before a folder is made
    check_remesh(config.export.remesh)
    if config.edit is not None:
        check_edit(config.edit)
    check_inputs(config)
    if config.subject is not None:
        from studio.subject.photos import check_subject

        check_subject(config.subject)
    check_priors(config)
    return Prepared(begin_run(scene, out), config)


def _continue(path: Path, source: str | None, overrides: list[str]) -> Prepared:
    """Open a run folder again."""
    run = open_run(path)
    scene = _resumed_scene(run, source, overrides)
    from studio.export.remesh import check_remesh  # numpy: after the quick refusals

    check_remesh(scene.export.remesh)
    with storage_errors(run.path, "write"):
        write_atomic(run.resolved_path, dump_yaml(scene))
    say(f"Continuing {run.path}")
    return Prepared(run, scene)


def _resumed_scene(run: RunFolder, source: str | None, overrides: list[str]) -> SceneConfig:
    """The run's own scene; only settings that do not change the result may be given anew.

    Raises:
        ConfigError: another scene, or overrides that would change what is optimised.
    """
    tree, _ = read_yaml(run.resolved_path)
    if task_class(tree, str(run.resolved_path)) is not SceneConfig:
        raise ConfigError(
            f"--resume: {run.path} made pictures, which are not continued - expected a run that "
            f"makes an asset. Make them again: {command('run', run.resolved_path)}"
        )
    before = validate(SceneConfig, tree, where=str(run.resolved_path))
    after = validate(SceneConfig, tree, overrides, where="--resume")
    if source is not None:
        after = load_scene(source, overrides).config
    changes = changes_of(before, after)
    if changes:
        again = command("run", source or run.resolved_path, *overrides)
        raise ConfigError(
            f"--resume: the run in {run.path} has other values: {_told(changes)} - expected the "
            f"same scene. For a new run use: {again}"
        )
    return after


def _told(changes: Sequence[Change]) -> str:
    """Such as ``seed is 0, not 4``; of many changes the first ones."""
    told = [
        f"{change.key} is {short(change.old, MOST_LETTERS)}, not {short(change.new, MOST_LETTERS)}"
        for change in changes[:MOST_CHANGES]
    ]
    more = len(changes) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


# --- finishing ------------------------------------------------------------------------------------


def _finish(run: RunFolder, device: str) -> dict[str, str]:
    """Asset, turntable and report of an optimised run; returns the paths, the page to open last.

    Raises:
        Interrupted: after Ctrl-C; what was optimised is saved.
    """
    from studio.finish import finish_run

    try:
        with logged_to(run.log_path):
            paths = finish_run(run, device=device, progress=lambda name: say(f"  {name}"))
    except KeyboardInterrupt:
        asset, both = command("export", run.path), command("run", "--resume", run.path)
        raise Interrupted(
            "Stopped while the asset was written; what was optimised is saved. Write the asset "
            f"with: {asset} (or asset and report: {both})"
        ) from None
    exported = run.read_info().get("export", {}).get("files", {})
    files = {kind: run.asset_dir / name for kind, name in exported.items()}
    for path in run.subject_dir.glob("lora/*.safetensors"):
        files["lora"] = path
    return {kind: str(path) for kind, path in {**files, **paths}.items()}


def _evaluate(run: RunFolder) -> None:
    """Measure the asset, note it in `run.json` and show it in the report."""
    from studio.commands.eval import evaluate_and_note
    from studio.evaluation.judge import load_judge

    with logged_to(run.log_path):
        say("  evaluation")
        evaluate_and_note(run, load_judge())


def _print_results(run: RunFolder, files: dict[str, str], as_json: bool) -> None:
    """Results on stdout; the last line is the file to open."""
    if as_json:
        info = run.read_info()
        keys = ("status", "prompt", "seed", "seconds", "metrics", "export", "evaluation")
        values = {key: info.get(key) for key in keys}
        sys.stdout.write(json.dumps({"run": str(run.path), **values, "files": files}) + "\n")
        return
    sys.stdout.write(f"run        {run.path}\n")
    for kind in ("asset", "obj", "ply", "lora", "turntable", "report"):
        if kind in files:
            sys.stdout.write(f"{kind:<10} {files[kind]}\n")
