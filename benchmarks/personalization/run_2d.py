"""Teach the prior twelve subjects with every method, and measure what each learned and forgot.

    python -m benchmarks.personalization.run_2d --name pocket --steps 300
    python -m benchmarks.personalization.run_2d --name beta --subjects rabbit,dog --methods dco \
        --set dco:method.beta=100

Methods are Textual Inversion, DreamBooth, DreamBooth-LoRA and DCO, all with equally many optimiser
steps, LoRAs also drawn with consistency guidance (``+cg``). Their settings are those of
`studio personalize` for pocket; two more rows say what the figures are of the prior itself, which
reads the class word, and of true photos behind the prior's autoencoder.

Figures: ``features`` (is it the subject), ``checks`` (is it what the prompt asks for), ``drift``
(what became of everything else). The same call goes on where an earlier one stopped; rows of
other settings or of another prior are made anew. Results go to
``benchmarks/results/personalization_2d--NAME.{json,md,png}``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.personalization.checks import check_accuracy
from benchmarks.personalization.features import SubjectFeatures
from benchmarks.personalization.methods import VARIANTS, training_config, variants_of
from benchmarks.personalization.results_2d import write_results
from benchmarks.personalization.rows_2d import PHOTOS, PRIOR, Bench, Cell, DrawSettings
from benchmarks.personalization.subjects import CASES, cases_of, write_photos
from benchmarks.suites import tell
from benchmarks.text_to_3d.run_suite import RESULTS, overrides_of
from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from scenes.objects.subjects import SUBJECTS
from studio.device import resolve_device
from studio.errors import Interrupted, StudioError
from studio.evaluation.comparison import Result
from studio.evaluation.intervals import json_values
from studio.evaluation.judge import load_judge
from studio.progress import say


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.personalization.run_2d", description=__doc__.splitlines()[0]
    )
    add = found.add_argument
    add("--name", default="pocket", help="name of the result files and of the folder of runs")
    add("--subjects", default=",".join(SUBJECTS), help="by commas")
    methods = ",".join(dict.fromkeys(variant.method for variant in VARIANTS))
    add("--methods", default=methods, help="by commas; dco+cg is one variant of dco")
    add("--steps", type=int, default=300, help="optimiser steps of every training")
    add(
        "--set",
        nargs="*",
        default=[],
        metavar="[METHOD:]KEY=VALUE",
        dest="overrides",
        help="for all trainings, or those of a method: dco:method.beta=100",
    )
    add("--prior", help="folder of a pocket prior; the shipped one when not given")
    add("--device", default="cpu", help="auto, cpu, cuda, cuda:1 or mps")
    add("--each", type=int, default=2, help="pictures of each prompt")
    add(
        "--drift", type=int, default=12, help="pictures of unrelated prompts; half as many of class"
    )
    add("--draw-steps", type=int, default=20, help="denoising steps of all pictures")
    add("--guidance", type=float, default=5.0, help="guidance scale of all pictures")
    add("--consistency", type=float, default=3.0, help="w_con of consistency guidance")
    add("--minutes", type=float, help="begin no row later than this")
    add("--measure-again", action="store_true", help="also what was measured before")
    add("--runs", type=Path, help="folder of trainings and rows (runs/personalization-NAME)")
    add("--results", type=Path, default=RESULTS)
    return found


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """Every row, subject by subject; the prior's own comes before what is compared with it.

    Raises:
        ConfigError: a subject, a method or a setting is wrong.
    """
    variants, found = variants_of(options.methods), []
    methods = list(dict.fromkeys(variant.method for variant in variants))
    for case in cases_of(options.subjects):
        photos = options.runs / case.name / PHOTOS
        configs = {}
        for method in methods:
            own = overrides_of(method, options.overrides, methods)
            given = (f"method.loop.steps={options.steps}", f"device={options.device}")
            given += (f"prior.path={options.prior}",) if options.prior else ()
            configs[method] = training_config(method, case, photos, (*given, *own))
        found += [Cell(case, name, None, None) for name in (PHOTOS, PRIOR)]
        found += [Cell(case, v.name, v, configs[v.method]) for v in variants]
    return found


def bench_of(options: argparse.Namespace) -> Bench:
    """The prior, the measures and the settings of pictures."""
    base = load_prior(PocketPriorConfig(path=options.prior), resolve_device(options.device))
    sampler = DdimConfig(steps=options.draw_steps, guidance_scale=options.guidance)
    settings = DrawSettings(options.each, options.drift, options.consistency, sampler)
    bench = Bench(base, SubjectFeatures(load_judge(), CASES), settings, options.runs)
    bench.measure_again = options.measure_again
    return bench


def rows_of(
    bench: Bench, cells: Sequence[Cell], minutes: float | None
) -> Iterator[tuple[Cell, Result]]:
    """The rows that are finished within the time; Ctrl-C leaves the rest for the next call."""
    started = time.monotonic()
    for number, cell in enumerate(cells, start=1):
        if minutes is not None and time.monotonic() - started > 60.0 * minutes:
            return
        photos = bench.runs / cell.case.name / PHOTOS
        if not photos.is_dir():
            write_photos(cell.case, photos)
        try:
            result = bench.row(cell)
        except (KeyboardInterrupt, Interrupted):
            say("Stopped; go on with the same command.")
            return
        say(f"[{number}/{len(cells)}] {cell.case.name}, {cell.name}")
        yield cell, result


def trust_of(features: SubjectFeatures) -> dict[str, dict[str, float]]:
    """How often the measures are right about pictures of the truth."""
    fronted = [case.name for case in CASES if case.has_front]
    checks = check_accuracy(CASES, features)
    return {
        **json_values(features.retrieval(fronted)),
        **{f"{group} check": json_values(share) for group, share in checks.items()},
    }


def main() -> None:
    """Train, draw, measure, compare."""
    options = parser().parse_args()
    options.runs = options.runs or Path("runs") / f"personalization-{options.name}"
    try:
        cells = cells_of(options)
        bench = bench_of(options)
        rows = list(rows_of(bench, cells, options.minutes))
        if not rows:
            raise SystemExit("nothing is finished yet; go on with the same command")
        paths, table = write_results(options, bench, rows, trust_of(bench.features))
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    tell(table, paths, left=len(cells) - len(rows), total=len(cells), what="rows")


if __name__ == "__main__":
    main()
