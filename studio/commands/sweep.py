"""`studio sweep`: one scene with several values of some settings, and a table of what they make.

    studio sweep demo stages.0.guidance.guidance_scale=10,20,40 --seeds 0-2
    studio sweep demo --prompts prompts.txt

Everything lies in one folder. The same command again goes on where it stopped, and with more values
it makes only what is missing.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from studio.batch import BatchConfig, Job, Outcome, only_one, run_jobs
from studio.config import load_scene, split_arguments
from studio.errors import ConfigError, Interrupted
from studio.evaluation.comparison import BIASES, COSTS, METRICS, Result, result_of
from studio.evaluation.tables import runs_table
from studio.progress import say
from studio.report import write_gallery
from studio.run_folder import slug, storage_errors, write_atomic
from studio.scene_file import parse_override

__all__ = ["Axis", "axes_of", "combinations", "run", "split_values"]

MAX_RUNS = 1000
"""More is a mistake in the values, or a job for several sweeps."""
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Axis:
    """A setting and the values it takes."""

    key: str
    """Dotted path."""
    values: tuple[str, ...]
    """As written, each to be read as YAML."""


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
    axes, fixed = axes_of([*overrides, *_prompt_axis(prompts), *_seed_axis(seeds)])
    rows = combinations(axes, side_by_side=side_by_side)
    scene = source or "demo"
    folder = out / "sweeps" / (name or _name(scene, axes))
    labels = [_label(axes, row) for row in rows]
    jobs = [Job(scene, (*fixed, *_overrides(axes, row)), folder) for row in rows]
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


def split_values(text: str) -> tuple[str, ...]:
    """Split at commas that stand outside of brackets and quotes: ``1,[2,3],'a, b'`` has three."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not parts[-1].strip():
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts)


def axes_of(overrides: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The settings with several values, and the overrides with one.

    Raises:
        ConfigError: a key stands twice, or a list has an empty or a repeated value.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    seen: set[str] = set()
    for text in overrides:
        key, _, raw = parse_override(text)
        if key in seen:
            raise ConfigError(f"{key} stands twice - write all its values in one: {key}=A,B")
        seen.add(key)
        values = split_values(raw)
        if len(values) == 1:
            fixed.append(text)
            continue
        if "" in values or len(set(values)) < len(values):
            what = "an empty value" if "" in values else "a value twice"
            raise ConfigError(f"{key}: {raw!r} has {what} - expected different values, as in A,B,C")
        axes.append(Axis(key, values))
    return axes, fixed


def _prompt_axis(path: Path | None) -> list[str]:
    """The prompts of a file as one override."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--prompts {path}: not UTF-8 text - expected one prompt a line."
        ) from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"--prompts {path}: no prompt in it - expected one on each line.")
    return ["prompt=" + ",".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)]


def _seed_axis(text: str | None) -> list[str]:
    """Seeds such as 0-3 or 1,5,7 as one override."""
    if text is None:
        return []
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--seeds is {text!r} - expected such as 0-3, or 1,5,7.")
        last = int(match[2] or match[1])
        if last - int(match[1]) > MAX_RUNS:
            raise ConfigError(f"--seeds is {text!r} - expected at most {MAX_RUNS} of them.")
        seeds += range(int(match[1]), last + 1)
    return ["seed=" + ",".join(map(str, seeds))]


def combinations(axes: Sequence[Axis], *, side_by_side: bool = False) -> list[tuple[str, ...]]:
    """The values of each run; the last axis changes fastest.

    Raises:
        ConfigError: axes of unequal length side by side, or too many runs.
    """
    if side_by_side and len({len(axis.values) for axis in axes}) > 1:
        lengths = ", ".join(f"{axis.key} has {len(axis.values)}" for axis in axes)
        raise ConfigError(f"--side-by-side: {lengths} values - expected as many of each.")
    lists = [axis.values for axis in axes]
    count = len(lists[0]) if side_by_side and lists else 1
    for values in [] if side_by_side else lists:
        count *= len(values)
    if count > MAX_RUNS:
        raise ConfigError(f"The sweep has {count} runs - expected at most {MAX_RUNS}.")
    return list(zip(*lists)) if side_by_side and lists else list(itertools.product(*lists))


def _overrides(axes: Sequence[Axis], row: Sequence[str]) -> list[str]:
    """Values as overrides; quotes that only kept a comma in are taken off."""
    return [f"{axis.key}={_plain(value)}" for axis, value in zip(axes, row, strict=True)]


def _plain(value: str) -> str:
    """``"a, b"`` as a, b; all else as it stands."""
    if value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1:
        read = yaml.safe_load(value)
        return read if isinstance(read, str) else value
    return value


def _label(axes: Sequence[Axis], row: Sequence[str]) -> str:
    """What tells a run from the others of the sweep."""
    pairs = [
        _plain(value) if axis.key == "prompt" else f"{axis.key.split('.')[-1]}={_plain(value)}"
        for axis, value in zip(axes, row, strict=True)
    ]
    return ", ".join(pairs) or "the scene as it is"


def _name(scene: str, axes: Sequence[Axis]) -> str:
    """Folder name of a sweep: the scene and what is varied."""
    keys = [axis.key.split(".")[-1] for axis in axes]
    return slug("-".join([Path(scene).stem if Path(scene).suffix else scene, *keys]))


def _check(jobs: Sequence[Job]) -> None:
    """Refuse a wrong value before the first run, and two runs that are the same.

    Raises:
        ConfigError: of the first job that cannot be run.
    """
    seen: dict[Any, Job] = {}
    for job in jobs:
        config = load_scene(job.scene, job.overrides).config
        other = seen.setdefault(config, job)
        if other is not job:
            raise ConfigError(
                f"{' '.join(job.overrides)} is the same scene as {' '.join(other.overrides)} - "
                "expected values that differ."
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
        "axes": {axis.key: [_plain(value) for value in axis.values] for axis in axes},
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
        values = [_plain(value) for value in row]
        writer.writerow([*values, outcome.status, *figures, result.run or "", outcome.error or ""])
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
