"""The result files of the suite: figures as JSON, tables as Markdown, and a grid of pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.text_to_3d.budgets import scene_rows
from studio.config import dump
from studio.evaluation.comparison import (
    Pair,
    Result,
    comparison_markdown,
    pair_differences,
    plain_summary,
    systems_of,
)
from studio.evaluation.suite import is_held_out_prompt
from studio.run_folder import RunFolder, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.text_to_3d.run_suite import Cell

SCHEMA = "text_to_3d/3"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "numba", "trimesh", "xatlas")
PANEL = 72  # pixels of one view in the grid
VIEWS = 4
COLUMNS = 4  # of the grid of a single system
EQUAL = 0.05
"""Budgets of denoiser evaluations that differ by more than this share are told."""
PAIRS = (
    Pair(
        "What does Magic3D's mesh stage bring?",
        system="pocket-magic3d",
        to="pocket-magic3d-coarse",
    ),
    Pair(
        "Is DreamFlow as good as ProlificDreamer at a third of its evaluations?",
        system="pocket-dreamflow-third",
        to="pocket-prolificdreamer",
    ),
)
"""Answered when both systems are among the results."""


def write_results(
    options: argparse.Namespace, results: Sequence[tuple[Cell, Result]]
) -> tuple[list[Path], str]:
    """Write the three files; returns their paths and the Markdown."""
    from studio.previews import save_png

    plain = [result for _, result in results]
    document = document_of(options, results)
    text = page(options.name, document, plain)
    folder = options.results
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"text_to_3d--{options.name}.{kind}" for kind in ("json", "md", "png")]
    write_atomic(paths[0], json.dumps(document, indent=1) + "\n")
    write_atomic(paths[1], text)
    picture = grid(plain)
    if picture is not None:
        save_png(paths[2], picture, {"command": document["command"]})
    return [path for path in paths if path.exists()], text


def document_of(
    options: argparse.Namespace, results: Sequence[tuple[Cell, Result]]
) -> dict[str, Any]:
    """Everything about the comparison, as JSON values."""
    plain = [result for _, result in results]
    configs = {cell.system: cell.job.config() for cell, _ in results}
    scenes = {system: dump(config) for system, config in configs.items()}
    for scene in scenes.values():
        for key in ("prompt", "seed"):
            scene.pop(key)
    return {
        "schema": SCHEMA,
        "command": shlex.join(["python", "-m", "benchmarks.text_to_3d.run_suite", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "workers": options.workers,
        "priors": priors_of(plain),
        "budgets": {system: scene_rows(config) for system, config in configs.items()},
        "summary": plain_summary(plain, is_held_out_prompt),
        "pairs": [
            {
                **asdict(pair),
                "differences": {name: asdict(figure) for name, figure in found.items()},
            }
            for pair in PAIRS
            if (found := pair_differences(plain, pair))
        ],
        "assets": [
            {
                **asdict(result),
                "held_out": cell.item.held_out,
                "run": result.run and os.path.relpath(result.run, options.runs),
            }
            for cell, result in results
        ],
        "scenes": scenes,
    }


def priors_of(results: Sequence[Result]) -> dict[str, list[str]]:
    """Fingerprints of the weights behind each system."""
    return {
        system: sorted({r.prior for r in results if r.system == system and r.prior})
        for system in systems_of(results)
    }


def mixed_priors(document: dict[str, Any]) -> list[str]:
    """Systems whose scenes name the same prior although it was not always the same weights."""
    groups: dict[str, list[str]] = {}
    for system in document["priors"]:
        named = json.dumps(document["scenes"][system]["prior"], sort_keys=True)
        groups.setdefault(named, []).append(system)
    return [
        system
        for group in groups.values()
        for system in group
        if len({fingerprint for one in group for fingerprint in document["priors"][one]}) > 1
    ]


def budget_notes(budgets: dict[str, int]) -> list[str]:
    """What a run of each system costs, and a warning when that is not the same for all."""
    counts = ", ".join(f"{system} {rows:,}" for system, rows in budgets.items())
    notes = [f"Denoiser evaluations of a run: {counts}."]
    least, most = min(budgets, key=budgets.__getitem__), max(budgets, key=budgets.__getitem__)
    if budgets[most] > (1.0 + EQUAL) * budgets[least]:
        excess = budgets[most] / budgets[least] - 1.0
        notes.append(
            f"**Budgets differ: {most} has {100 * excess:.0f} % more evaluations than {least}, so "
            "the figures compare budgets as well as systems.** `--evaluations` makes them equal."
        )
    return notes


def page(name: str, document: dict[str, Any], results: Sequence[Result]) -> str:
    """The Markdown file."""
    machine_words = f"{document['machine']['processor']}, {document['workers']} run(s) at a time"
    notes = [
        f"`{document['command']}`",
        f"{document['date']}, {machine_words}. Means with 95 % intervals: seeds are averaged for "
        "each prompt, and prompts are drawn with replacement. A failed run counts as wrong.",
        *budget_notes(document["budgets"]),
    ]
    mixed = mixed_priors(document)
    if mixed:
        notes.append(f"**The weights of the prior of {', '.join(mixed)} changed on the way.**")
    heading = "\n\n".join([f"# Text to 3D: {name}", *notes])
    return heading + "\n\n" + comparison_markdown(results, is_held_out_prompt, PAIRS)


def grid(results: Sequence[Result]) -> Tensor | None:
    """Four views of every asset: rows are prompts, columns systems; the first seed of each.

    The prompts of a single system stand in several columns. The bar under an asset is green when
    the judge names kind and colour in most of its views. A run that failed leaves a word, one that
    had no turn yet a grey field.
    """
    from studio.evaluation.sheets import comparison_sheet

    systems = systems_of(results)
    prompts = list(dict.fromkeys(result.prompt for result in results))
    first = {(r.prompt, r.system): r for r in reversed(results)}
    strips, right = [], []
    for prompt in prompts:
        found = [first.get((prompt, system)) for system in systems]
        strips.append([asset_strip(result) for result in found])
        right.append([bool(r and (r.value("both_accuracy") or 0.0) > 0.5) for r in found])
    if not _shows_any(strips):
        return None
    labels = [prompt + (" (held out)" if is_held_out_prompt(prompt) else "") for prompt in prompts]
    height = math.ceil(len(prompts) / COLUMNS) if len(systems) == 1 else len(prompts)
    parts = [slice(start, start + height) for start in range(0, len(prompts), height)]
    if not all(_shows_any(strips[part]) for part in parts):
        parts = [slice(None)]
    return side_by_side(
        [
            comparison_sheet(strips[part], rows=labels[part], columns=systems, right=right[part])
            for part in parts
        ]
    )


def _shows_any(strips: Sequence[Sequence[Tensor | str | None]]) -> bool:
    return any(hasattr(strip, "shape") for row in strips for strip in row)


def side_by_side(sheets: Sequence[Tensor]) -> Tensor:
    """Pictures ``[h, w, 3]`` from left to right, white below shorter ones."""
    import torch
    from torch.nn import functional

    height = max(len(sheet) for sheet in sheets)
    below = [(0, 0, 0, 0, 0, height - len(sheet)) for sheet in sheets]
    return torch.cat([functional.pad(s, pad, value=1.0) for s, pad in zip(sheets, below)], dim=1)


def asset_strip(result: Result | None) -> Tensor | str | None:
    """Views of an asset side by side; how it ended if there is none; None if it was never made."""
    from studio.evaluation.assets import asset_glb
    from studio.evaluation.sheets import filmstrip
    from studio.evaluation.views import eval_cameras, normalized, render_mesh
    from studio.export.read import load_asset

    glb = asset_glb(RunFolder(result.run)) if result and result.run else None
    if glb is None:
        return result and result.status
    return filmstrip(render_mesh(normalized(load_asset(glb)), eval_cameras(VIEWS, size=PANEL)).rgb)


# --- where it was measured ------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str | None:
    """The commit that the runs were made with, as far as the working tree tells."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip() or None
