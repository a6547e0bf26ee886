"""The result files of the 2D bench: figures as JSON, tables as Markdown, a sheet of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.personalization.methods import VARIANTS
from benchmarks.personalization.rows_2d import PHOTOS, PRIOR, Bench, Cell
from benchmarks.personalization.tables import (
    difference_table,
    document_of,
    figures_table,
    note_of,
    write_files,
)
from studio.config import dump
from studio.evaluation.comparison import Result, systems_of
from studio.evaluation.intervals import estimate_of

__all__ = ["FIGURES", "page", "sheet_of", "write_results"]

SCHEMA = "personalization_2d/1"
MODULE = "benchmarks.personalization.run_2d"
FIGURES: dict[str, str] = {
    "fidelity": "fidelity ↑",
    "identified": "identified ↑",
    "prompt": "prompt ↑",
    "view": "view ↑",
    "color": "colour ↑",
    "relation": "relation ↑",
    "background": "background ↑",
    "class_change": "class change ↓",
    "unrelated_change": "unrelated change ↓",
    "class_right": "class right ↑",
    "unrelated_right": "unrelated right ↑",
}
"""Headings of all figures, which say what is better."""
SUBJECTS = "subjects"
"""What intervals of ``trust`` are over; in older files, which name nothing, over pictures."""
COSTS = {"train_seconds": "training, CPU s", "draw_seconds": "drawing, CPU s"}
BASE = "dreambooth_lora"
"""What differences are to: DCO's own baseline."""
SHOWN = ("plain", "plain", "view", "color", "relation", "background")
"""Groups of the six pictures of a cell, in two lines of three."""


def write_results(
    options: argparse.Namespace,
    bench: Bench,
    rows: Sequence[tuple[Cell, Result]],
    trust: Mapping[str, Mapping[str, float]],
) -> tuple[list[Path], str]:
    """Write the three files; returns their paths and the Markdown.

    Args:
        options: the command line.
        bench: has the pictures.
        rows: finished ones, subject by subject.
        trust: how often each measure is right about the truth.
    """
    order = [PHOTOS, PRIOR, *(variant.name for variant in VARIANTS)]
    results = sorted((result for _, result in rows), key=lambda row: order.index(row.system))
    document = document_of(MODULE, SCHEMA, results, [*FIGURES, *COSTS])
    document |= {
        "steps": options.steps,
        "drawing": asdict(bench.settings),
        "trust": {name: dict(share) for name, share in trust.items()},
        "trust_unit": SUBJECTS,
        "methods": _settings(rows),
    }
    text = page(options.name, document, results)
    name = f"personalization_2d--{options.name}"
    return write_files(options.results, name, document, text, sheet_of(bench, rows)), text


def _settings(rows: Sequence[tuple[Cell, Result]]) -> dict[str, Any]:
    """Each method's settings, without what is the subject's."""
    configs = {c.variant.method: c.config for c, _ in rows if c.variant and c.config}
    found = {}
    for method, config in configs.items():
        found[method] = dump(config)["method"]
        for key in ("token", "init_word"):
            found[method].pop(key, None)
    return found


def page(name: str, document: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The Markdown file."""
    parts = [
        f"# Personalization: {name}",
        f"`{document['command']}`",
        f"{document['date']}, {document['machine']['processor']}, prior "
        f"{', '.join(document['priors'])}. {document['steps']} optimiser steps of each method. "
        f"{note_of('subjects')}",
        _trust_note(document),
        figures_table(results, FIGURES, COSTS),
    ]
    if BASE in systems_of(results):
        own = [r for r in results if r.system not in (PHOTOS, PRIOR)]
        parts += [
            f"## Difference to {BASE}\n\nPaired over the subjects that both have.",
            difference_table(own, FIGURES, to=BASE),
        ]
    return "\n\n".join(parts) + "\n"


def _trust_note(document: Mapping[str, Any]) -> str:
    """How often each measure is right about the truth."""
    trust = {name: estimate_of(share) for name, share in document["trust"].items()}
    if document.get("trust_unit") == SUBJECTS:
        shares = ", ".join(f"{name} {share.text()} ({share.n})" for name, share in trust.items())
        return f"Measures on pictures of the truth, share that is right, of n subjects: {shares}."
    shares = ", ".join(f"{name} {share.value:.2f} ({share.n})" for name, share in trust.items())
    return (
        f"Measures on pictures of the truth, share that is right and number of pictures: {shares}. "
        "Their intervals in the JSON file take pictures of one subject for independent, and are "
        "too narrow."
    )


def sheet_of(bench: Bench, rows: Sequence[tuple[Cell, Result]]) -> Tensor | None:
    """Photos, the prior's class, and each variant: a line for each subject.

    The bar under a cell is green when most of its pictures are taken for the subject.
    """
    from studio.evaluation.sheets import comparison_sheet

    found = {(cell.case.name, cell.name): (cell, result) for cell, result in rows}
    order = [PHOTOS, PRIOR, *(variant.name for variant in VARIANTS)]
    columns = [name for name in order if any(key[1] == name for key in found)]
    names = list(dict.fromkeys(cell.case.name for cell, _ in rows))
    cells, right = [], []
    for name in names:
        pairs = [found.get((name, column)) for column in columns]
        cells.append([None if pair is None else _block(bench, pair[0]) for pair in pairs])
        right.append([bool(p and (p[1].value("identified") or 0.0) > 0.5) for p in pairs])
    if not any(isinstance(cell, Tensor) for row in cells for cell in row):
        return None
    return comparison_sheet(cells, rows=names, columns=columns, right=right)


def _block(bench: Bench, cell: Cell) -> Tensor | None:
    """Six pictures of a row in two lines."""
    pictures = bench.pictures(cell)
    if pictures is None:
        return None
    asked = pictures["asked"]
    if cell.name == PHOTOS:
        chosen = list(asked[: len(SHOWN)])
    else:
        chosen, left = [], list(zip(bench.asks(cell.case), asked, strict=True))
        for group in SHOWN:
            first = next((pair for pair in left if pair[0].group == group), left[0])
            left = [pair for pair in left if pair is not first]
            chosen.append(first[1])
    chosen += [torch.ones_like(asked[0])] * (len(SHOWN) - len(chosen))
    half = len(SHOWN) // 2
    return torch.cat([torch.cat(chosen[:half], 1), torch.cat(chosen[half:], 1)])
