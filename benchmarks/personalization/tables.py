"""Tables and files that the benches of personalization write.

Intervals are over subjects: two pictures of one subject are no independent draws. Methods are
compared by their differences on the subjects that both have.
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
from studio.evaluation.comparison import (
    RANGES,
    Result,
    differences,
    estimate,
    own_count,
    systems_of,
)
from studio.evaluation.intervals import POSITIVE, SHARE, Estimate, Range, interval_note, json_values
from studio.run_folder import write_atomic

__all__ = [
    "difference_table",
    "document_of",
    "figures_table",
    "note_of",
    "summary_of",
    "write_files",
]

SHARES = (
    *("identified", "prompt", "view", "color", "relation", "background"),
    *("class_right", "unrelated_right", "palette", "pattern", "kind", "leak"),
)
AMOUNTS = ("class_change", "unrelated_change", "train_seconds", "draw_seconds")
FIGURE_RANGES: dict[str, Range] = {
    **RANGES,
    **dict.fromkeys(SHARES, SHARE),
    **dict.fromkeys(AMOUNTS, POSITIVE),
}
"""What values figures can have; fidelity any."""


def note_of(unit: str) -> str:
    """How to read means and intervals of both tables.

    Args:
        unit: what the means are over.
    """
    return f"{interval_note(unit)} A figure that some {unit} lack has an n of its own."


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
        cells = [_figure(own, name) for name in figures]
        cells += [_amount(estimate(own, name, ranges=FIGURE_RANGES)) for name in costs]
        lines.append(_line([f"**{system}**", str(len(own)), *cells]))
    return "\n".join(lines)


def difference_table(results: Sequence[Result], figures: Mapping[str, str], *, to: str) -> str:
    """What each other method has more of each figure than ``to``, paired over subjects."""
    columns = {name: differences(results, name, to=to, ranges=FIGURE_RANGES) for name in figures}
    others = [system for system in systems_of(results) if system != to]
    lines = _heading(["method", *figures.values()])
    for system in others:
        found = [columns[name].get(system) for name in figures]
        most = max((figure.n for figure in found if figure), default=0)
        lines.append(_line([f"**{system}**", *(_signed(figure, most) for figure in found)]))
    return "\n".join(lines)


def document_of(
    module: str, schema: str, results: Sequence[Result], figures: Sequence[str]
) -> dict[str, Any]:
    """What both benches write: how it was made, of which prior, means and rows."""
    return {
        "schema": schema,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "priors": sorted({result.prior for result in results if result.prior}),
        "summary": summary_of(results, figures),
        "rows": [{**asdict(result), "run": None} for result in results],
    }


def summary_of(results: Sequence[Result], figures: Sequence[str]) -> dict[str, Any]:
    """Means of all methods with their intervals, as JSON values."""
    summary = {}
    for system in systems_of(results):
        own = [result for result in results if result.system == system]
        found = {name: estimate(own, name, ranges=FIGURE_RANGES) for name in figures}
        summary[system] = {name: json_values(figure) for name, figure in found.items() if figure}
    return summary


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


def _figure(own: Sequence[Result], name: str) -> str:
    """A method's mean with its interval, and its n where only some subjects have the figure."""
    found = estimate(own, name, ranges=FIGURE_RANGES)
    return "–" if found is None else found.text() + own_count(own, name)


def _amount(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:,.0f}"


def _signed(found: Estimate | None, most: int) -> str:
    """A difference, and its n where it is of fewer subjects than others of its line."""
    if found is None:
        return "–"
    return found.text(sign="+") + (f" (n {found.n})" if found.n < most else "")
