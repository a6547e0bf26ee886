"""The result files of the 3D bench: figures as JSON, tables as Markdown, a sheet of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.personalization.tables import (
    difference_table,
    document_of,
    figures_table,
    note_of,
    write_files,
)
from benchmarks.text_to_3d.grid import PANEL, VIEWS, asset_strip
from studio.config import dump
from studio.evaluation.comparison import Result, systems_of

if TYPE_CHECKING:
    from benchmarks.personalization.run_3d import Asset

__all__ = ["FIGURES", "page", "sheet_of", "write_results"]

SCHEMA = "personalization_3d/1"
MODULE = "benchmarks.personalization.run_3d"
FIGURES: dict[str, str] = {
    "fidelity": "fidelity ↑",
    "identified": "identified ↑",
    "silhouette_iou": "IoU ↑",
    "chamfer": "Chamfer ↓",
    "janus": "Janus ↓",
}
"""Headings of all figures, which say what is better."""
COSTS = {"seconds": "seconds", "denoiser_evaluations": "evaluations"}


def write_results(
    options: argparse.Namespace, rows: Sequence[tuple[Asset, Result]]
) -> tuple[list[Path], str]:
    """Write the three files; returns their paths and the Markdown."""
    order = list(dict.fromkeys(asset.system for asset, _ in rows))
    results = sorted((result for _, result in rows), key=lambda row: order.index(row.system))
    document = document_of(MODULE, SCHEMA, results, [*FIGURES, *COSTS])
    document |= {"steps_scale": options.steps_scale, "scenes": _scenes(rows)}
    text = page(options.name, document, results)
    name = f"personalization_3d--{options.name}"
    return write_files(options.results, name, document, text, sheet_of(rows)), text


def _scenes(rows: Sequence[tuple[Asset, Result]]) -> dict[str, Any]:
    """Each system's settings, without what is the subject's."""
    found = {asset.system: dump(asset.job.config()) for asset, _ in rows}
    for scene in found.values():
        scene["prompt"] = ""
        if scene.get("subject"):
            scene["subject"] |= {"images": "", "word": ""}
    return found


def page(name: str, document: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The Markdown file."""
    first = systems_of(results)[0]
    failed = sum(not result.measured for result in results)
    parts = [
        f"# Personalization in 3D: {name}",
        f"`{document['command']}`",
        f"{document['date']}, {document['machine']['processor']}, prior "
        f"{', '.join(document['priors'])}. Steps scaled by {document['steps_scale']:g}; seconds "
        f"include trainings and views, evaluations do not; {failed} of {len(results)} assets "
        f"failed. {note_of('subjects')}",
        figures_table(results, FIGURES, COSTS),
        f"## Difference to {first}\n\nPaired over the subjects that both have.",
        difference_table(results, FIGURES, to=first),
    ]
    return "\n\n".join(parts) + "\n"


def sheet_of(rows: Sequence[tuple[Asset, Result]]) -> Tensor | None:
    """True views, then each system's asset: a line for each subject.

    The bar under an asset is green when most of its views are taken for the subject.
    """
    from studio.evaluation.sheets import comparison_sheet

    found = {(asset.case.name, asset.system): result for asset, result in rows}
    names = list(dict.fromkeys(asset.case.name for asset, _ in rows))
    systems = list(dict.fromkeys(asset.system for asset, _ in rows))
    cells, right = [], []
    for name in names:
        results = [found.get((name, system)) for system in systems]
        cells.append([_true_strip(name), *map(asset_strip, results)])
        right.append([True, *(bool(r and (r.value("identified") or 0.0) > 0.5) for r in results)])
    return comparison_sheet(cells, rows=names, columns=["truth", *systems], right=right)


def _true_strip(name: str) -> Tensor:
    """Views of the true object side by side."""
    from scenes.objects.subjects import true_views
    from studio.evaluation.sheets import filmstrip
    from studio.evaluation.views import eval_cameras

    rgb, _ = true_views(name, eval_cameras(VIEWS, size=PANEL))
    return filmstrip(torch.from_numpy(rgb).float())
