"""Measure the tools of editing and control on a pocket prior, each beside a named baseline.

    python -m benchmarks.editing.run                       # hours on one core; resumable
    python -m benchmarks.editing.run --n 16 --minutes 30   # 16 cases of each row; none begins late
    python -m benchmarks.editing.run --rows gate,p2p-recolour --again

The gate comes first: attention to a word must lie on its thing, or the rest means nothing. Rows are
measured one after another and written at once, to ``benchmarks/results/editing--NAME.{json,md}``
with a picture a row in ``editing--NAME/``. The same call goes on where an earlier one stopped. A
row is measured anew when the prior, the settings, the number of cases or its own weights changed.
Rows whose weights are not there are skipped, and say so.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.editing.adapters import ADAPTER_ROWS
from benchmarks.editing.bench import CASES, Bench, Row, Target, figures_of, with_targets
from benchmarks.editing.instructed import INSTRUCTED
from benchmarks.editing.pointing import measure_gate
from benchmarks.editing.prompt_edits import PROMPT_EDITS
from benchmarks.editing.real_edits import REAL_EDITS
from benchmarks.editing.regions import REGION_ROWS
from benchmarks.editing.results import (
    INTERVALS,
    Entry,
    origin,
    read_entries,
    save_picture,
    write_entries,
)
from benchmarks.editing.self_guided import SELF_GUIDED
from image_tools.configs import DdimConfig, PocketPriorConfig
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.weights import fingerprint_files
from studio.errors import StudioError
from studio.evaluation.judge import load_judge
from studio.progress import say

__all__ = ["ROWS", "main"]

RESULTS = Path(__file__).resolve().parent.parent / "results"
GATE = Row(
    "gate",
    "The largest attention to a word lies on the thing that it names.",
    "a place drawn at random",
    measure_gate,
    {
        "noun_16_t0.4": Target(0.8),
        "sample_16": Target(0.8),
        "left_16": Target(0.8),
        "right_16": Target(0.8),
        "kind_of_samples": Target(0.95),
        "color_of_samples": Target(0.95),
    },
)
ROWS: tuple[Row, ...] = (
    GATE,
    *PROMPT_EDITS,
    *SELF_GUIDED,
    *REGION_ROWS,
    *REAL_EDITS,
    *ADAPTER_ROWS,
    *INSTRUCTED,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.editing.run", description=__doc__.partition("\n")[0]
    )
    add = found.add_argument
    add("--name", default="pocket", help="name of the result files")
    add("--prior", help="folder of another pocket prior")
    add("--rows", help="by commas; all when not given")
    add("--n", type=int, help=f"cases of each row, at least 2; {CASES}, or 16 to 48 of costly rows")
    add("--steps", type=int, default=20, help="of DDIM")
    add("--guidance-scale", type=float, default=5.0)
    add("--seed", type=int, default=0, help="of cases and noise")
    add("--minutes", type=float, help="begin no row later than this")
    add("--again", action="store_true", help="also what was measured before")
    add("--results", type=Path, default=RESULTS)
    return found


def chosen_rows(names: str | None) -> tuple[Row, ...]:
    """Rows by their names, which are measured in the order of the names.

    Raises:
        StudioError: a name is not known.
    """
    if names is None:
        return ROWS
    known, wanted = {row.name: row for row in ROWS}, list(dict.fromkeys(names.split(",")))
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise StudioError(
            f"--rows has {', '.join(unknown)} - expected some of: {', '.join(known)}."
        )
    return tuple(known[name] for name in wanted)


def key_of(row: Row, bench: Bench, asked: int | None) -> dict[str, Any]:
    """What a row's figures depend on."""
    files = sorted(row.weights.rglob("*.safetensors")) if row.weights is not None else []
    return {
        "prior": bench.prior.fingerprint,
        "weights": fingerprint_files(files) if files else None,
        "sampler": asdict(bench.sampler),
        "cases": row.cases(asked),
        "seed": bench.seed,
    }


def measure(row: Row, bench: Bench, options: argparse.Namespace) -> Entry:
    """Measure a row, or say why it cannot be."""
    key = key_of(row, bench, options.n)
    if row.missing is not None:
        targets = {name: target.text for name, target in row.targets.items()}
        return Entry(row.name, row.about, row.baseline, key, reason=row.missing, targets=targets)
    begun, started, count = origin(), time.process_time(), row.cases(options.n)
    found = row.measure(bench, count)
    save_picture(options.results, options.name, row, found)
    return Entry(
        row.name,
        row.about,
        row.baseline,
        key,
        cases=count,
        seconds=round(time.process_time() - started, 1),
        figures=with_targets(figures_of(found), row.targets),
        intervals=INTERVALS,
        **begun,
    )


def measure_all(bench: Bench, options: argparse.Namespace, rows: Sequence[Row]) -> list[Row]:
    """Measure and write row by row; returns the rows that are left."""
    path = options.results / f"editing--{options.name}.json"
    known, left, started = read_entries(path), [], time.monotonic()
    known = {
        r.name: replace(known[r.name], figures=with_targets(known[r.name].figures, r.targets))
        for r in ROWS
        if _is_current(known.get(r.name), r, bench)
    }
    for row in rows:
        entry = known.get(row.name)
        is_done = entry is not None and entry.key == key_of(row, bench, options.n)
        if is_done and entry.reason is None and not options.again:
            continue
        if options.minutes is not None and time.monotonic() - started > 60.0 * options.minutes:
            left.append(row)
            continue
        say(f"{row.name}: {row.cases(options.n)} cases")
        known[row.name] = measure(row, bench, options)
        entries = [known[r.name] for r in ROWS if r.name in known]
        write_entries(options.results, options.name, entries, settings_of(bench, options))
        say(_line(known[row.name]))
    return left


def settings_of(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """What the result file says of the prior and of sampling, and how to repeat all its rows."""
    words = ["python", "-m", "benchmarks.editing.run", "--name", options.name]
    words += ["--n", str(options.n)] if options.n is not None else []
    words += ["--steps", str(bench.sampler.steps)]
    words += ["--guidance-scale", f"{bench.sampler.guidance_scale:g}", "--seed", str(bench.seed)]
    words += ["--prior", options.prior] if options.prior else []
    prior = {"kind": "pocket", "fingerprint": bench.prior.fingerprint}
    return {
        "command": shlex.join(words),
        "prior": prior,
        "sampler": asdict(bench.sampler),
        "seed": bench.seed,
    }


def _is_current(entry: Entry | None, row: Row, bench: Bench) -> bool:
    """Whether an earlier entry may stand beside new ones, if only with fewer cases."""
    if entry is None:
        return False
    now = key_of(row, bench, None)
    return all(entry.key[name] == now[name] for name in ("prior", "weights", "sampler", "seed"))


def _line(entry: Entry) -> str:
    if entry.reason is not None:
        return f"  skipped: {entry.reason}"
    return "\n".join(
        f"  {f.name} {f.ours.text()}" + (f" against {f.baseline.text()}" if f.baseline else "")
        for f in entry.figures
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when all rows that can be measured are."""
    options = parser().parse_args(argv)
    torch.set_num_threads(1)
    try:
        if options.n is not None and options.n < 2:
            raise StudioError(f"--n is {options.n} - expected at least 2 cases.")
        rows = chosen_rows(options.rows)
        prior = load_prior(PocketPriorConfig(path=options.prior), torch.device("cpu"))
        sampler = DdimConfig(steps=options.steps, guidance_scale=options.guidance_scale)
        bench = Bench(prior, load_judge(), sampler, options.seed)
        left = measure_all(bench, options, rows)
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if left:
        say(f"left: {', '.join(row.name for row in left)}; go on with the same command.")
    return 130 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
