"""Write the tables of result files anew from what their JSON says of single cases and assets.

    python -m benchmarks.rewrite_tables benchmarks/results/text_to_3d--five.json
    python -m benchmarks.rewrite_tables          # all that are committed

For when the tables have changed and not what was measured: no model is run. Means and intervals
over assets, subjects and sets are found again; the editing benchmark keeps none of its cases, so
its intervals stay.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.editing.results import markdown, read_entries
from benchmarks.personalization import results_2d, results_3d, run_style
from benchmarks.personalization.tables import summary_of
from benchmarks.text_to_3d.results import page, plain_pairs
from studio.evaluation.comparison import Result, plain_summary
from studio.evaluation.suite import is_held_out_prompt
from studio.run_folder import write_atomic

__all__ = ["main", "rewritten"]

RESULTS = Path(__file__).resolve().parent / "results"


def rewritten(path: Path) -> tuple[dict[str, Any], str]:
    """What a result file and the Markdown beside it should say.

    Raises:
        ValueError: it is of no benchmark with tables.
    """
    document, name = json.loads(path.read_text()), path.stem.partition("--")[2]
    suite = str(document.get("schema")).partition("/")[0]
    if suite == "text_to_3d":
        return _text_to_3d(name, document)
    if suite == "personalization_2d":
        return _subjects_2d(name, document)
    if suite == "personalization_3d":
        return _subjects_3d(name, document)
    if suite == "style_aligned":
        return _styles(document)
    if suite == "editing":
        return document, markdown(name, document, list(read_entries(path).values()))
    raise ValueError(f"{path}: the schema {document.get('schema')!r} has no tables.")


def _results(rows: Sequence[dict[str, Any]]) -> list[Result]:
    names = [field.name for field in fields(Result)]
    return [Result(**{name: row[name] for name in names if name in row}) for row in rows]


def _text_to_3d(name: str, document: dict[str, Any]) -> tuple[dict[str, Any], str]:
    results = _results(document["assets"])
    summary = plain_summary(results, is_held_out_prompt)
    found = document | {"summary": summary, "pairs": plain_pairs(results)}
    return found, page(name, found, results)


def _subjects_2d(name: str, document: dict[str, Any]) -> tuple[dict[str, Any], str]:
    results = _results(document["rows"])
    figures = [*results_2d.FIGURES, *results_2d.COSTS]
    found = document | {"summary": summary_of(results, figures)}
    return found, results_2d.page(name, found, results)


def _subjects_3d(name: str, document: dict[str, Any]) -> tuple[dict[str, Any], str]:
    results = _results(document["rows"])
    figures = [*results_3d.FIGURES, *results_3d.COSTS]
    found = document | {"summary": summary_of(results, figures)}
    return found, results_3d.page(name, found, results)


def _styles(document: dict[str, Any]) -> tuple[dict[str, Any], str]:
    results = _results(document["rows"])
    figures = [*run_style.FIGURES, *run_style.COSTS]
    found = document | {"summary": summary_of(results, figures)}
    options = run_style.parser().parse_args(shlex.split(document["command"])[3:])
    return found, run_style.page(found, results, run_style.sampler_of(options))


def main(arguments: Sequence[str]) -> None:
    """Rewrite the files that are named, or all that have tables."""
    paths = [Path(argument) for argument in arguments]
    for path in paths or sorted(md.with_suffix(".json") for md in RESULTS.glob("*.md")):
        document, text = rewritten(path)
        write_atomic(path, json.dumps(document, indent=1) + "\n")
        write_atomic(path.with_suffix(".md"), text)
        print(f"wrote {path} and the Markdown beside it")


if __name__ == "__main__":
    main(sys.argv[1:])
