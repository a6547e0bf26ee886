"""Make six subjects in 3D from their photos, and measure the assets against the true objects.

    python -m benchmarks.personalization.run_3d --name pocket
    python -m benchmarks.personalization.run_3d --name quick --subjects rabbit --steps-scale 0.1

Systems: ``dreambooth3d`` and ``dreambooth3d-dco``; ``plain-prompt``, the class word with the same
stages and no photos; and ``full-dreambooth``, SDS with the fully trained weights, the baseline of
the paper (arXiv 2303.13508). Any other preset or scene file of ``task: dreambooth3d`` can be one.
``--steps-scale`` scales the steps of all trainings and stages, and so the time: 1 takes about a
quarter of an hour of one core for an asset.

The same call goes on where an earlier one stopped. Results go to
``benchmarks/results/personalization_3d--NAME.{json,md,png}``; figures are those of ``truth_3d``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.personalization.features import SubjectFeatures
from benchmarks.personalization.results_3d import write_results
from benchmarks.personalization.subjects import CASES, Case, cases_of, write_photos
from benchmarks.personalization.truth_3d import SubjectTruth
from benchmarks.suites import add_run_options, tell
from benchmarks.text_to_3d.run_suite import RESULTS, overrides_of
from studio.batch import BatchConfig, Job, Outcome, only_one, run_jobs
from studio.config import load_scene
from studio.configs import SceneConfig
from studio.errors import ConfigError, StudioError
from studio.evaluation.assets import asset_glb
from studio.evaluation.comparison import Result, result_of
from studio.evaluation.judge import load_judge
from studio.export.read import load_asset
from studio.progress import say
from studio.run_folder import RunFolder

SYSTEMS = Path(__file__).resolve().parent / "systems"
SIX = "teddy-bear,beetle-car,rabbit,toy-train,biplane,hamburger"
"""Subjects whose kind is also a toybox kind."""
MEASURED = "subject_evaluation"
"""Key of ``run.json``."""


@dataclass(frozen=True)
class Asset:
    """One run of the bench."""

    case: Case
    system: str
    job: Job


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.personalization.run_3d", description=__doc__.splitlines()[0]
    )
    add = found.add_argument
    add("--name", default="pocket", help="name of the result files and of the folder of runs")
    add("--subjects", default=SIX, help="by commas")
    add(
        "--systems",
        default="plain-prompt,full-dreambooth,dreambooth3d,dreambooth3d-dco",
        help="presets or scene files, by commas; the first: base",
    )
    add("--steps-scale", type=float, default=1.0, help="factor of the steps of everything")
    add(
        "--set",
        nargs="*",
        default=[],
        metavar="[SYSTEM:]KEY=VALUE",
        dest="overrides",
        help="for all systems, or for one: dreambooth3d:subject.views.count=8",
    )
    add_run_options(found, results=RESULTS, runs="runs/personalization-3d-NAME")
    return found


def assets_of(options: argparse.Namespace) -> list[Asset]:
    """Every asset, subject by subject.

    Raises:
        ConfigError: a subject or a system is unknown, named twice, or its settings are wrong.
    """
    if not options.steps_scale > 0.0:
        raise ConfigError(f"--steps-scale is {options.steps_scale} - expected more than 0.")
    systems = [system for system in options.systems.split(",") if system]
    names = [Path(system).stem for system in systems]
    if not systems or len(set(names)) < len(names):
        raise ConfigError(f"--systems is {options.systems!r} - expected different names.")
    found = []
    for case in cases_of(options.subjects):
        for system, name in zip(systems, names, strict=True):
            own = overrides_of(name, options.overrides, names)
            job = job_of(case, system, own, options)
            found.append(Asset(case, name, job))
    return found


def job_of(case: Case, system: str, own: Sequence[str], options: argparse.Namespace) -> Job:
    """The run of one system: the subject's photos where it takes some, else its class word."""
    beside = SYSTEMS / f"{system}.yaml"
    scene = str(beside) if beside.is_file() else system
    photos = (options.runs / "photos" / case.name).absolute()
    taught = (f"subject.images={photos}", f"subject.word={case.word}", f"prompt={case.template}")
    plain = (f"prompt={case.template.replace('{}', case.word)}",)
    given = (*(taught if _takes_photos(scene) else plain), *own)
    scaled = scaled_steps(load_scene(scene, given).config, options.steps_scale)
    return Job(scene, (*given, *scaled), options.runs / Path(system).stem)


def _takes_photos(scene: str) -> bool:
    """Whether a system has a subject; a preset without its photos is a form to fill in."""
    return load_scene(scene, ("prompt={}",)).config.subject is not None


def scaled_steps(scene: SceneConfig, factor: float) -> tuple[str, ...]:
    """Overrides that scale the steps of all stages and trainings, at least one step each."""
    if factor == 1.0:
        return ()
    steps = {f"stages.{k}.steps": stage.steps for k, stage in enumerate(scene.stages)}
    if scene.subject is not None:
        subject = scene.subject
        steps |= {
            "subject.training.loop.steps": subject.training.loop.steps,
            "subject.partial_steps": subject.partial_steps,
            "subject.second_training.loop.steps": subject.second_training.loop.steps,
        }
    return tuple(f"{key}={max(1, round(factor * value))}" for key, value in steps.items())


def make(assets: Sequence[Asset], batch: BatchConfig, lock: int | None) -> list[Outcome]:
    """The outcome of every asset that had its turn; Ctrl-C leaves the rest for the next call."""
    by_job, found = {asset.job: asset for asset in assets}, {}
    try:
        for outcome in run_jobs(list(by_job), batch, lock=lock):
            found[outcome.job] = outcome
            asset, count = by_job[outcome.job], f"[{len(found)}/{len(assets)}]"
            error = f": {outcome.error}" if outcome.error else ""
            say(f"{count} {asset.case.name}, {asset.system}: {outcome.status}{error}")
    except KeyboardInterrupt:
        say("Stopped; running assets have saved their checkpoints.")
    return [found.get(asset.job, Outcome(asset.job, "waiting")) for asset in assets]


def measured(
    assets: Sequence[Asset], outcomes: Sequence[Outcome], *, again: bool
) -> list[tuple[Asset, Result]]:
    """The result of each asset that had its turn, measured now if it was not before."""
    truths: dict[str, SubjectTruth] = {}
    features, found = None, []
    for asset, outcome in zip(assets, outcomes, strict=True):
        if outcome.status == "waiting":
            continue
        name = asset.case.name
        if outcome.run is None:
            found.append((asset, Result(asset.system, name, 0, outcome.status)))
            continue
        info, glb = outcome.run.read_info(), asset_glb(outcome.run)
        if outcome.status == "done" and glb and (again or MEASURED not in info):
            features = features or SubjectFeatures(load_judge(), CASES)
            truth = truths.get(name) or SubjectTruth(asset.case, features)
            truths[name] = truth
            outcome.run.update_info({MEASURED: truth.metrics(load_asset(glb))})
        found.append((asset, _result(asset, outcome.run)))
    return found


def _result(asset: Asset, run: RunFolder) -> Result:
    """What stands in ``run.json``; its seconds include those of trainings and views."""
    plain, info = result_of(run, system=asset.system), run.read_info()
    seconds = info.get("seconds") or {}
    spent = sum(seconds.get(part) or 0.0 for part in ("prepare", "optimise"))
    return replace(
        plain,
        prompt=asset.case.name,
        metrics=info.get(MEASURED, {}),
        costs={**plain.costs, "seconds": spent},
    )


def main() -> None:
    """Make, measure, compare."""
    options = parser().parse_args()
    options.runs = options.runs or Path("runs") / f"personalization-3d-{options.name}"
    try:
        for case in cases_of(options.subjects):
            photos = options.runs / "photos" / case.name
            if not photos.is_dir():
                write_photos(case, photos)
        assets = assets_of(options)
        batch = BatchConfig(
            workers=options.workers,
            threads=options.threads,
            evaluate=False,
            minutes=options.minutes,
            retry=options.retry,
        )
        with only_one(options.runs) as lock:
            outcomes = make(assets, batch, lock)
            results = measured(assets, outcomes, again=options.measure_again)
            if not results:
                raise SystemExit("nothing is finished yet; go on with the same command")
            paths, table = write_results(options, results)
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    tell(table, paths, left=len(assets) - len(results), total=len(assets), what="assets")


if __name__ == "__main__":
    main()
