"""`studio sweep`: one scene with several values of some settings, and a table of what they make.

    studio sweep demo stages.0.guidance.guidance_scale=10,20,40 --seeds 0-2
    studio sweep demo --prompts prompts.txt

Everything lies in one folder. The same command again goes on where it stopped, and with more values
it makes only what is missing.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from studio.batch import BatchConfig, Job, Outcome, only_one, run_jobs
from studio.config import split_arguments
from studio.errors import ConfigError, Interrupted
from studio.evaluation.comparison import BIASES, COSTS, METRICS, Result, result_of
from studio.evaluation.tables import runs_table
from studio.progress import say
from studio.report import write_gallery
from studio.resuming import FREE_ON_RESUME, work_of
from studio.run_folder import slug, storage_errors, write_atomic
from studio.sweep_axes import (
    Axis,
    axes_of,
    combinations,
    label_of,
    overrides_of,
    prompt_axis,
    seed_axis,
)

__all__ = ["run"]


def run(
    arguments: Sequence[str],
    *,
    prompts: Path | None = None,
    seeds: str | None = None,
    side_by_side: bool = False,
    out: Path = Path("runs"),
    name: str | None = None,
    batch: BatchConfig | None = None,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Make every run of the sweep that is missing, then print the table of all.

    Args:
        arguments: a scene (file, preset or prompt), then ``key.path=value`` or ``key.path=a,b,c``.
        prompts: a text file with one prompt a line.
        seeds: such as ``0-3`` or ``1,5,7``.
        side_by_side: the first values together, then the second ones, instead of all combinations.
        out: folder of all runs; the sweep is in ``sweeps/NAME`` below it.
        name: of the sweep; made from the scene and the settings when None.
        batch: processes, threads and time.
        dry_run: list the runs only.
        as_json: print JSON instead of a table.

    Raises:
        ConfigError: a scene or a value is wrong; nothing was started.
        Interrupted: after Ctrl-C; the same command goes on.
    """
    source, overrides = split_arguments(arguments)
    axes, fixed = axes_of(overrides, given=[*prompt_axis(prompts), *seed_axis(seeds)])
    rows = combinations(axes, side_by_side=side_by_side)
    scene = source or "demo"
    folder = out / "sweeps" / (name or _name(scene, axes))
    labels = [label_of(axes, row) for row in rows]
    jobs = [Job(scene, (*fixed, *overrides_of(axes, row)), folder) for row in rows]
    _check(jobs)
    if dry_run:
        _print_jobs(folder, labels, as_json)
        return
    with only_one(folder) as lock:
        _note(folder, scene, fixed, axes, side_by_side)
        outcomes = _make(jobs, labels, batch or BatchConfig(), lock)
        results = [_result(outcome) for outcome in outcomes]
        files = _write(folder, axes, rows, outcomes, results)
    _print(folder, labels, outcomes, results, files, as_json)
    if any(outcome.status == "waiting" for outcome in outcomes):
        raise Interrupted(_waiting(outcomes))


# --- what to run ----------------------------------------------------------------------------------


def _name(scene: str, axes: Sequence[Axis]) -> str:
    """Folder name of a sweep: the scene and what is varied."""
    keys = [axis.key.split(".")[-1] for axis in axes]
    return slug("-".join([Path(scene).stem if Path(scene).suffix else scene, *keys]))


def _check(jobs: Sequence[Job]) -> None:
    """Refuse a wrong value before the first run, and two jobs that would be one run.

    Raises:
        ConfigError: of the first job that cannot be run.
    """
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(work_of(job.config()), job)
        if other is not job:
            raise ConfigError(_clash(job, other))


def _clash(job: Job, other: Job) -> str:
    """What is told of two jobs of which the second would only go on with the run of the first."""
    mine, theirs = shlex.join(job.overrides), shlex.join(other.overrides)
    if job.config() == other.config():
        return f"{mine} is the same scene as {theirs} - expected values that differ."
    return (
        f"{mine} is the same run as {theirs}, because {', '.join(FREE_ON_RESUME)} do not change "
        "what is optimised - expected values that do. Write other assets of a finished run with: "
        "studio export RUN"
    )


# --- running --------------------------------------------------------------------------------------


def _make(
    jobs: Sequence[Job], labels: Sequence[str], batch: BatchConfig, lock: int | None
) -> list[Outcome]:
    """The outcomes in the order of the jobs, told as they come."""
    names, found, fresh = dict(zip(jobs, labels)), {}, 0
    try:
        for outcome in run_jobs(jobs, batch, lock=lock):
            found[outcome.job] = outcome
            if outcome.fresh and outcome.status != "waiting":
                fresh += 1
            if outcome.fresh or outcome.status != "done":
                error = f": {outcome.error}" if outcome.error else ""
                say(f"[{len(found)}/{len(jobs)}] {names[outcome.job]} {outcome.status}{error}")
    except KeyboardInterrupt:
        say("Stopped; running jobs have saved their checkpoints.")
    say(f"{fresh} made, {sum(o.status == 'done' for o in found.values())} of {len(jobs)} done.")
    return [found.get(job, Outcome(job, "waiting")) for job in jobs]


def _result(outcome: Outcome) -> Result:
    """Its figures; none when it has no run folder. A killed process left an old word in its own."""
    config = outcome.job.config()
    if outcome.run is None:
        return Result(Path(outcome.job.scene).stem, config.prompt, config.seed, outcome.status)
    return replace(result_of(outcome.run), status=outcome.status)


def _waiting(outcomes: Sequence[Outcome]) -> str:
    """How many are left, and what to do."""
    left = sum(outcome.status == "waiting" for outcome in outcomes)
    return f"{left} of {len(outcomes)} runs are left. Go on with the same command."


# --- results --------------------------------------------------------------------------------------


def _note(
    folder: Path, scene: str, fixed: Sequence[str], axes: Sequence[Axis], side_by_side: bool
) -> None:
    """`sweep.yaml`: what was asked for last."""
    values = {
        "scene": scene,
        "overrides": list(fixed),
        "axes": {axis.key: list(axis.values) for axis in axes},
        "side_by_side": side_by_side,
    }
    with storage_errors(folder, "write"):
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomic(folder / "sweep.yaml", text)


def _write(
    folder: Path,
    axes: Sequence[Axis],
    rows: Sequence[Sequence[str]],
    outcomes: Sequence[Outcome],
    results: Sequence[Result],
) -> dict[str, str]:
    """`results.csv` and `gallery.html`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [axis.key for axis in axes]
    writer.writerow([*keys, "status", *METRICS, *BIASES, *COSTS, "run", "error"])
    for row, outcome, result in zip(rows, outcomes, results, strict=True):
        figures = [result.metrics.get(name) for name in (*METRICS, *BIASES)]
        figures += [result.costs.get(name) for name in COSTS]
        writer.writerow([*row, outcome.status, *figures, result.run or "", outcome.error or ""])
    with storage_errors(folder, "write"):
        write_atomic(folder / "results.csv", text.getvalue())
    runs = [outcome.run for outcome in outcomes if outcome.run is not None]
    write_gallery(runs, folder / "gallery.html")
    return {
        "results": str(folder / "results.csv"),
        "gallery": str(folder / "gallery.html"),
    }


def _print(
    folder: Path,
    labels: Sequence[str],
    outcomes: Sequence[Outcome],
    results: Sequence[Result],
    files: dict[str, str],
    as_json: bool,
) -> None:
    """The table, or all of it as JSON."""
    if not as_json:
        table = runs_table(results, labels)
        lines = [f"{kind:<10} {path}\n" for kind, path in files.items()]
        sys.stdout.write(table + "\n" + "".join(lines))
        return
    runs = [
        {
            "label": label,
            "overrides": list(outcome.job.overrides),
            "status": outcome.status,
            "error": outcome.error,
            "run": result.run,
            "metrics": dict(result.metrics),
            "costs": dict(result.costs),
        }
        for label, outcome, result in zip(labels, outcomes, results, strict=True)
    ]
    sys.stdout.write(json.dumps({"sweep": str(folder), "files": files, "runs": runs}) + "\n")


def _print_jobs(folder: Path, labels: Sequence[str], as_json: bool) -> None:
    """What would be run."""
    if as_json:
        sys.stdout.write(json.dumps({"sweep": str(folder), "runs": list(labels)}) + "\n")
        return
    sys.stdout.write("".join(f"{label}\n" for label in labels))
    say(f"{len(labels)} runs in {folder}")
