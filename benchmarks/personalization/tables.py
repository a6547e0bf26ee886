"""Tables and files that both benches of personalization write.

Intervals are over subjects, from three on: two pictures of one subject are no independent draws.
Methods are compared by their differences on the subjects that both have.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.text_to_3d.results import commit, machine
from studio.evaluation.comparison import Result, differences, estimate, systems_of
from studio.evaluation.intervals import Estimate
from studio.run_folder import write_atomic

__all__ = ["difference_table", "document_of", "figures_table", "write_files"]

LEAST = 3
"""Subjects without which a mean has no interval."""


def figures_table(
    results: Sequence[Result],
    figures: Mapping[str, str],
    costs: Mapping[str, str],
    *,
    unit: str = "subjects",
) -> str:
    """A line for each method: means over subjects with 95 % intervals, then costs.

    Args:
        results: of all methods.
        figures: headings of metrics by name.
        costs: headings of costs by name.
        unit: what the means are over.
    """
    lines = _heading(["method", unit, *figures.values(), *costs.values()])
    for system in systems_of(results):
        own = [result for result in results if result.system == system]
        cells = [_interval(estimate(own, name)) for name in figures]
        cells += [_amount(estimate(own, name)) for name in costs]
        lines.append(_line([f"**{system}**", str(len(own)), *cells]))
    return "\n".join(lines)


def difference_table(results: Sequence[Result], figures: Mapping[str, str], *, to: str) -> str:
    """What each other method has more of each figure than ``to``, paired over subjects."""
    columns = {name: differences(results, name, to=to) for name in figures}
    others = [system for system in systems_of(results) if system != to]
    lines = _heading(["method", *figures.values()])
    for system in others:
        cells = [_signed(columns[name].get(system)) for name in figures]
        lines.append(_line([f"**{system}**", *cells]))
    return "\n".join(lines)


def document_of(
    module: str, schema: str, results: Sequence[Result], figures: Sequence[str]
) -> dict[str, Any]:
    """What both benches write: how it was made, of which prior, means and rows."""
    systems = systems_of(results)
    summary = {}
    for system in systems:
        own = [result for result in results if result.system == system]
        found = {name: estimate(own, name) for name in figures}
        summary[system] = {name: asdict(figure) for name, figure in found.items() if figure}
    return {
        "schema": schema,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "priors": sorted({result.prior for result in results if result.prior}),
        "summary": summary,
        "rows": [{**asdict(result), "run": None} for result in results],
    }


def write_files(
    folder: Path, name: str, document: dict[str, Any], text: str, sheet: Tensor | None
) -> list[Path]:
    """Write NAME.json, NAME.md and, where there is one, the sheet NAME.png."""
    from studio.previews import save_png

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("json", "md", "png")]
    write_atomic(paths[0], json.dumps(document, indent=1) + "\n")
    write_atomic(paths[1], text)
    if sheet is None:
        return paths[:2]
    save_png(paths[2], sheet, {"command": document["command"]})
    return paths


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _heading(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _interval(found: Estimate | None) -> str:
    """The mean, and its interval where there are subjects enough to draw from."""
    if found is None:
        return "–"
    return found.text() if found.n >= LEAST else f"{found.value:.2f}"


def _amount(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:,.0f}"


def _signed(found: Estimate | None) -> str:
    if found is None:
        return "–"
    value = f"{found.value:+.2f}"
    return f"{value} [{found.low:+.2f}, {found.high:+.2f}]" if found.n >= LEAST else value
