"""The result files of the editing benchmark: figures as JSON, tables as Markdown, a picture a row.

The JSON file is also what a later call goes on from: a row is kept while prior, settings, number of
cases and the row's own weights are those of now.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import commit
from benchmarks.editing.bench import Figure, Found, Row
from benchmarks.text_to_3d.results import machine, machines_note
from studio.evaluation.intervals import Estimate, estimate_of, interval_note, json_values
from studio.evaluation.sheets import comparison_sheet
from studio.previews import save_png
from studio.run_folder import write_atomic

__all__ = [
    "INTERVALS",
    "Entry",
    "markdown",
    "origin",
    "read_entries",
    "save_picture",
    "write_entries",
]

SCHEMA = "editing/1"
INTERVALS, PERCENTILES = "skewed t", "percentiles"
"""How intervals of means are found, and how older rows have them."""


@dataclass(frozen=True)
class Entry:
    """What is known of a row."""

    name: str
    about: str
    baseline: str
    key: Mapping[str, Any]
    """What the figures depend on."""
    cases: int = 0
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()
    reason: str | None = None
    """Why it was not measured."""
    targets: Mapping[str, str] = field(default_factory=dict)
    """What its figures should reach, if it was not measured."""
    intervals: str = PERCENTILES
    """How those of means were found."""
    processor: str = ""
    """What it was measured on; empty where nobody noted it, as in older files."""
    commit: str = ""
    """That of the code when the row was begun, as far as the working tree tells."""
    date: str = ""
    """The day on which the row was begun."""

    @property
    def passed(self) -> bool | None:
        """Whether all figures with a target reach it; None without any."""
        marks = [figure.passed for figure in self.figures if figure.passed is not None]
        return all(marks) if marks else None


def origin() -> dict[str, str]:
    """Processor, commit and date of an entry that is begun now."""
    return {
        "processor": machine()["processor"],
        "commit": commit() or "",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def read_entries(path: Path) -> dict[str, Entry]:
    """Rows of an earlier call, by name; none where there was none."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    if document.get("schema") != SCHEMA:
        return {}
    return {one["name"]: _entry(one) for one in document["rows"]}


def write_entries(
    folder: Path, name: str, entries: Sequence[Entry], settings: Mapping[str, Any]
) -> list[Path]:
    """Write the JSON and the Markdown file."""
    document = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        **settings,
        "rows": [json_values(entry) for entry in entries],
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"editing--{name}.{kind}" for kind in ("json", "md")]
    write_atomic(paths[0], json.dumps(document, indent=1) + "\n")
    write_atomic(paths[1], markdown(name, document, entries))
    return paths


def save_picture(folder: Path, name: str, row: Row, found: Found) -> None:
    """The first cases of a row, one in each line; red where it failed."""
    path = folder / f"editing--{name}" / f"{row.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    enlarged = [
        [image.repeat_interleave(2, 0).repeat_interleave(2, 1) for image in images]
        for images in found.pictures
    ]
    sheet = comparison_sheet(enlarged, rows=found.labels, columns=found.columns, right=found.good)
    save_png(path, sheet, {"row": row.about})


def markdown(name: str, document: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """Tables of all rows."""
    sampler = document["sampler"]
    lines = [
        f"# Editing and control: {name}",
        f"`{document['command']}`",
        f"{document['date']}, {_machines(entries)} Prior `{document['prior']['fingerprint']}`, "
        f"{sampler['steps']} DDIM steps, guidance scale {sampler['guidance_scale']:g}. "
        f"{interval_note('cases')} Differences are paired. Silhouettes and overlaps are from 0 to "
        "1, differences of colours in 0..255, distances in pixels of 64.",
        *_old_intervals(entries),
    ]
    lines.append(_summary(entries))
    for entry in entries:
        lines.append(f"## {entry.name}")
        if entry.reason is not None:
            targets = ", ".join(f"{_label(k)} {text}" for k, text in entry.targets.items())
            lines.append(f"{entry.about} **Skipped:** {entry.reason}. Targets: {targets}.")
            continue
        picture = f"editing--{name}/{entry.name}.png"
        lines.append(
            f"{entry.about} Baseline: {entry.baseline}. {entry.cases} cases, "
            f"{', '.join([f'{entry.seconds:.0f} s', *_origin(entry)])}. [Picture]({picture})"
        )
        lines.append(_table(entry))
    return "\n\n".join(lines) + "\n"


def _machines(entries: Sequence[Entry]) -> str:
    """What the rows were measured on."""
    measured = [entry for entry in entries if entry.reason is None]
    names = [entry.processor or "an unknown machine" for entry in measured]
    return machines_note(names or ["nothing measured"])


def _origin(entry: Entry) -> list[str]:
    """What is known of where a row comes from."""
    commit_ = entry.commit and f"commit {entry.commit}"
    return [part for part in (entry.processor, entry.date, commit_) if part]


def _old_intervals(entries: Sequence[Entry]) -> list[str]:
    """What is to be known of rows with intervals of another kind."""
    old = [e.name for e in entries if e.reason is None and e.intervals == PERCENTILES]
    if not old:
        return []
    names = "all rows" if len(old) == len(entries) else ", ".join(old)
    return [
        f"Of {names} the values of single cases are not kept. Intervals of shares of outcomes, and "
        "of their differences where counts decide them, are found from these; other ones are "
        "percentiles of a bootstrap and cover less than 95 % (simulated of 64 values: 0.91 to "
        "0.94, and less where values are very unequal)."
    ]


def _summary(entries: Sequence[Entry]) -> str:
    """The first figure of each row."""
    rows = ["| row | figure | tool | baseline | cases | targets |", "|---|---|---|---|---|---|"]
    verdicts = {True: "met", False: "**not all met**", None: ""}
    for entry in entries:
        if entry.reason is not None:
            rows.append(f"| {entry.name} | | | | | skipped |")
            continue
        first = entry.figures[0]
        texts = f"{_text(first.ours)} | {_text(first.baseline)}"
        verdict = verdicts[entry.passed]
        rows.append(
            f"| {entry.name} | {_label(first.name)} | {texts} | {entry.cases} | {verdict} |"
        )
    return "\n".join(rows)


def _table(entry: Entry) -> str:
    rows = ["| figure | tool | baseline | difference | n | target |", "|---|---|---|---|---|---|"]
    for figure in entry.figures:
        texts = [_text(e) for e in (figure.ours, figure.baseline, figure.difference)]
        target = figure.target or ""
        if figure.passed is not None:
            target += ", met" if figure.passed else ", **not met**"
        label = _label(figure.name)
        rows.append(f"| {label} | {' | '.join(texts)} | {figure.ours.n} | {target} |")
    return "\n".join(rows)


def _label(name: str) -> str:
    return name.replace("_", " ")


def _text(estimate: Estimate | None) -> str:
    return "" if estimate is None else estimate.text()


def _entry(values: dict[str, Any]) -> Entry:
    figures = tuple(
        Figure(
            **{**figure, **{k: _estimate(figure[k]) for k in ("ours", "baseline", "difference")}}
        )
        for figure in values.pop("figures")
    )
    return Entry(**values, figures=figures)


def _estimate(values: dict[str, Any] | None) -> Estimate | None:
    return None if values is None else estimate_of(values)
