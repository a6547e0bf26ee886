"""Make the prompts of the text-to-3D suite with several systems, measure them, and compare.

    python -m benchmarks.text_to_3d.run_suite --name demo
    python -m benchmarks.text_to_3d.run_suite --name five --seeds 0,1 --workers 2 --systems \
        pocket-dreamfusion,pocket-magic3d,pocket-prolificdreamer,pocket-dreamflow,pocket-mvdream

A system is a preset, a scene of ``systems/`` beside this file, or any scene file. ``--evaluations
3200`` gives all the same number of denoiser evaluations, by scaling their steps (``budgets``).

The same call goes on where an earlier one stopped, on any day; more prompts, seeds or systems can
be added, and a system whose settings changed is made anew. Assets are made prompt by prompt, so
that an unfinished comparison still compares like with like. Results go to
``benchmarks/results/text_to_3d--NAME.{json,md,png}``; runs that have not had their turn are left
out of them, runs that failed count as wrong. What stands there of systems with the same settings is
kept where its run folders are gone (``kept``): the files are enough to go on from.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suites import add_run_options, tell
from benchmarks.text_to_3d.budgets import scaled
from benchmarks.text_to_3d.kept import Kept, Key, read_kept
from benchmarks.text_to_3d.results import write_results
from studio.batch import BatchConfig, Job, Outcome, only_one, run_jobs
from studio.config import load_scene
from studio.errors import ConfigError, StudioError
from studio.evaluation.comparison import Result, result_of
from studio.evaluation.suite import SUITE, SuitePrompt, chosen
from studio.progress import format_seconds, say
from studio.resuming import find_run

RESULTS = Path(__file__).resolve().parent.parent / "results"
SYSTEMS = Path(__file__).resolve().parent / "systems"


@dataclass(frozen=True)
class Cell:
    """One asset of the comparison."""

    system: str
    seed: int
    item: SuitePrompt
    job: Job

    @property
    def key(self) -> Key:
        """What it is called in result files."""
        return self.system, self.item.prompt, self.seed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.text_to_3d.run_suite", description=__doc__.splitlines()[0]
    )
    add = found.add_argument
    add("--name", default="demo", help="name of the result files and of the folder of runs")
    add("--systems", default="demo", help="presets or scene files, by commas; the first: base")
    add("--seeds", default="0", help="by commas")
    add("--limit", type=int, default=len(SUITE), help="this many prompts, held-out ones among them")
    add(
        "--set",
        nargs="*",
        action="extend",
        default=[],
        metavar="[SYSTEM:]KEY=VALUE",
        dest="overrides",
        help="for all systems, or for one: pocket-dreamflow:stages.0.steps=200",
    )
    add(
        "--evaluations",
        nargs="*",
        action="extend",
        default=[],
        metavar="[SYSTEM:]N",
        help="scale the steps to about N denoiser evaluations, of all systems or of one",
    )
    add_run_options(found, results=RESULTS, runs="runs/suite-NAME")
    return found


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """Every asset, in the order in which they are made: seed, prompt, system.

    Raises:
        ConfigError: a system is named twice, or its settings are wrong.
    """
    systems = [name for name in options.systems.split(",") if name]
    names = [Path(system).stem if system.endswith(".yaml") else system for system in systems]
    if not systems or len(set(names)) < len(names):
        raise ConfigError(f"--systems is {options.systems!r} - expected different names.")
    if not re.fullmatch(r"\d+(,\d+)*", options.seeds):
        raise ConfigError(f"--seeds is {options.seeds!r} - expected numbers, such as 0,1.")
    scenes = [scene_of(system) for system in systems]
    own = settings_of(options, scenes, names)
    cells = []
    for seed in dict.fromkeys(map(int, options.seeds.split(","))):
        for item in chosen(options.limit):
            for scene, name, overrides in zip(scenes, names, own):
                given = (f"prompt={item.prompt}", f"seed={seed}", *overrides)
                job = Job(scene, given, options.runs / name)
                cells.append(Cell(name, seed, item, job))
    for cell in cells[: len(systems)]:
        cell.job.config()  # tell what is wrong before anything else is done
    return cells


def settings_of(
    options: argparse.Namespace, scenes: Sequence[str], names: Sequence[str]
) -> list[tuple[str, ...]]:
    """The overrides of each system: those given, then those that scale it to its budget."""
    budgets, found = budgets_of(options.evaluations, names), []
    for scene, name in zip(scenes, names):
        given = overrides_of(name, options.overrides, names)
        if name in budgets:
            config = load_scene(scene, (f"prompt={SUITE[0].prompt}", *given)).config
            given = (*given, *scaled(config, budgets[name]))
        found.append(given)
    return found


def scene_of(system: str) -> str:
    """The preset or the scene file that a system means."""
    beside = SYSTEMS / f"{system}.yaml"
    return str(beside) if beside.is_file() else system


def budgets_of(texts: Sequence[str], systems: Sequence[str]) -> dict[str, int]:
    """Denoiser evaluations by system, of those that have a number; its own comes before all's.

    Raises:
        ConfigError: one is no number, or names a system that is not compared.
    """
    found: dict[str, int] = {}
    for text in sorted(texts, key=lambda text: ":" in text):
        system, _, number = text.rpartition(":")
        if not re.fullmatch(r"[1-9]\d*", number):
            raise ConfigError(f"--evaluations {text}: expected N or SYSTEM:N, N at least 1.")
        if system and system not in systems:
            have = ", ".join(systems)
            raise ConfigError(f"--evaluations {text}: no system {system!r} - have {have}.")
        found |= dict.fromkeys([system] if system else systems, int(number))
    return found


def overrides_of(name: str, overrides: Sequence[str], systems: Sequence[str]) -> tuple[str, ...]:
    """The overrides for all systems, then those of one.

    Raises:
        ConfigError: one names a system that is not compared.
    """
    common, own = [], []
    for text in overrides:
        key = text.partition("=")[0]
        system, colon, _ = key.partition(":")
        if not colon:
            common.append(text)
        elif system not in systems:
            raise ConfigError(f"--set {text}: no system {system!r} - have {', '.join(systems)}.")
        elif system == name:
            own.append(text.partition(":")[2])
    return (*common, *own)


def make(cells: Sequence[Cell], batch: BatchConfig, lock: int | None) -> list[tuple[Cell, Outcome]]:
    """The outcome of every cell; Ctrl-C leaves the rest for the next call."""
    by_job, found = {cell.job: cell for cell in cells}, {}
    started, fresh = time.monotonic(), 0
    try:
        for outcome in run_jobs([cell.job for cell in cells], batch, lock=lock):
            found[outcome.job] = outcome
            fresh += outcome.fresh
            if outcome.fresh or outcome.error:
                cell = by_job[outcome.job]
                left = (time.monotonic() - started) / max(fresh, 1) * (len(cells) - len(found))
                error = f": {outcome.error}" if outcome.error else ""
                say(
                    f"[{len(found)}/{len(cells)}, {format_seconds(left)} left] {cell.system}, "
                    f"seed {cell.seed}, {cell.item.prompt}: {outcome.status}{error}"
                )
    except KeyboardInterrupt:
        say("Stopped; running assets have saved their checkpoints.")
    waiting = [Outcome(cell.job, "waiting") for cell in cells]
    return [(cell, found.get(cell.job, none)) for cell, none in zip(cells, waiting)]


def split(
    cells: Sequence[Cell], kept: Mapping[Key, Kept], *, retry: bool
) -> tuple[list[Cell], list[tuple[Cell, Result]]]:
    """What is to be made or read from its run, and results whose runs are gone.

    Args:
        cells: all.
        kept: of the result file.
        retry: whether what failed is made again.
    """
    todo, found = [], []
    for cell in cells:
        old = kept.get(cell.key)
        stands = old is not None and not (retry and old.result.status != "done")
        if stands and find_run(cell.job.out, cell.job.config()) is None:
            found.append((cell, old.result))
        else:
            todo.append(cell)
    return todo, found


def measured(outcomes: Sequence[tuple[Cell, Outcome]], *, again: bool) -> list[tuple[Cell, Result]]:
    """The result of each asset that had its turn, measured now if it was not before."""
    judge, found = None, []
    for cell, outcome in outcomes:
        if outcome.status == "waiting":
            continue
        if outcome.run is None:
            found.append((cell, Result(cell.system, cell.item.prompt, cell.seed, outcome.status)))
            continue
        if outcome.status == "done" and (again or not result_of(outcome.run).measured):
            from studio.commands.eval import evaluate_and_note
            from studio.evaluation.judge import load_judge

            judge = judge or load_judge()
            try:
                evaluate_and_note(outcome.run, judge)
            except StudioError as error:
                say(f"{outcome.run.path}: {error}")
        found.append((cell, result_of(outcome.run, system=cell.system)))
    return found


def main() -> None:
    """Make, measure, compare."""
    options = parser().parse_args()
    options.runs = options.runs or Path("runs") / f"suite-{options.name}"
    try:
        cells = cells_of(options)
        batch = BatchConfig(
            workers=options.workers,
            threads=options.threads,
            minutes=options.minutes,
            retry=options.retry,
        )
        systems = {cell.system: cell.job.config() for cell in reversed(cells)}
        with only_one(options.runs) as lock:
            kept = read_kept(options.results, options.name, systems)
            todo, old = split(cells, kept, retry=options.retry)
            results = [*old, *measured(make(todo, batch, lock), again=options.measure_again)]
            if not results:
                raise SystemExit("nothing is finished yet; go on with the same command")
            # The first system is the base, also when its first asset had no turn yet.
            order = {cell.key: number for number, cell in enumerate(cells)}
            first = list(dict.fromkeys(cell.system for cell in cells))
            results.sort(key=lambda pair: (first.index(pair[0].system), order[pair[0].key]))
            paths, table = write_results(options, results, kept)
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    tell(table, paths, left=len(cells) - len(results), total=len(cells), what="assets")


if __name__ == "__main__":
    main()
