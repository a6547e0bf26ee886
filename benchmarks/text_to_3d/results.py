"""The result files of the suite: figures as JSON, tables as Markdown, and a grid of pictures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.text_to_3d.budgets import scene_rows
from benchmarks.text_to_3d.grid import grid
from benchmarks.text_to_3d.kept import SCHEMA, Kept, Key, scene_settings
from studio.evaluation.comparison import (
    Pair,
    Result,
    comparison_markdown,
    pair_differences,
    plain_summary,
    systems_of,
)
from studio.evaluation.intervals import json_values
from studio.evaluation.suite import SUITE, is_held_out_prompt
from studio.run_folder import write_atomic

if TYPE_CHECKING:
    from benchmarks.text_to_3d.run_suite import Cell

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "numba", "trimesh", "xatlas")
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
    Pair(
        "What is MVDream's own, beside its cameras, backgrounds and losses?",
        system="pocket-mvdream",
        to="pocket-dreamfusion-as-mvdream",
    ),
    Pair(
        "Has VSD truer colours than score distillation at the same guidance scale?",
        system="pocket-prolificdreamer",
        to="pocket-dreamfusion-at-7.5",
    ),
    Pair(
        "Has DreamFlow truer colours than score distillation at the same guidance scale?",
        system="pocket-dreamflow",
        to="pocket-dreamfusion-at-7.5",
    ),
    Pair(
        "Has VSD truer colours than score distillation that ends on a mesh, as it does?",
        system="pocket-prolificdreamer",
        to="pocket-magic3d",
    ),
)
"""Answered when both systems are among the results."""


def write_results(
    options: argparse.Namespace,
    results: Sequence[tuple[Cell, Result]],
    kept: Mapping[Key, Kept],
) -> tuple[list[Path], str]:
    """Write the three files, keeping what earlier ones say; their paths, and the Markdown."""
    from studio.previews import save_png

    plain = [result for _, result in results]
    document = document_of(options, results, kept)
    text = page(options.name, document, plain)
    folder = options.results
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"text_to_3d--{options.name}.{kind}" for kind in ("json", "md", "png")]
    write_atomic(paths[0], json.dumps(document, indent=1) + "\n")
    write_atomic(paths[1], text)
    picture = grid(plain, {key: k.strip for key, k in kept.items() if k.strip is not None})
    if picture is not None:
        save_png(paths[2], picture, {"command": document["command"]})
    return [path for path in paths if path.exists()], text


def document_of(
    options: argparse.Namespace,
    results: Sequence[tuple[Cell, Result]],
    kept: Mapping[Key, Kept],
) -> dict[str, Any]:
    """Everything about the comparison, as JSON values."""
    plain = [result for _, result in results]
    configs = {cell.system: cell.job.config() for cell, _ in results}
    here = machine()
    gone = [_key(result) for result in plain if result.run is None]
    processors = {key: kept[key].processor for key in gone if key in kept}
    # What failed before may have been made again now.
    commits = {key: one.commit for key, one in kept.items() if one.result.status == "done"}
    code = commit()
    return {
        "schema": SCHEMA,
        "command": command_of(sys.argv[1:]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": code,
        "machine": here,
        "workers": options.workers,
        "priors": priors_of(plain),
        "budgets": {system: scene_rows(config) for system, config in configs.items()},
        "summary": plain_summary(plain, is_held_out_prompt),
        "pairs": plain_pairs(plain),
        "assets": [
            {
                **asdict(result),
                "held_out": cell.item.held_out,
                "run": result.run and os.path.relpath(result.run, options.runs),
                "processor": processors.get(_key(result), here["processor"]),
                "commit": commits.get(_key(result), code),
            }
            for cell, result in results
        ],
        "scenes": {system: scene_settings(config) for system, config in configs.items()},
    }


def plain_pairs(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Answers to the questions of ``PAIRS`` that can be answered, as JSON values."""
    return [
        {
            **asdict(pair),
            "differences": {name: json_values(figure) for name, figure in found.items()},
        }
        for pair in PAIRS
        if (found := pair_differences(results, pair))
    ]


def _key(result: Result) -> Key:
    return result.system, result.prompt, result.seed


def command_of(arguments: Sequence[str]) -> str:
    """The command that makes the whole comparison, without how long one call may take."""
    kept, skip = [], False
    for text in arguments:
        if not skip and not text.startswith("--minutes"):
            kept.append(text)
        skip = text == "--minutes"
    return shlex.join(["python", "-m", "benchmarks.text_to_3d.run_suite", *kept])


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


def machine_note(document: dict[str, Any]) -> str:
    """What the assets were made on."""
    names = [row["processor"] for row in document["assets"]]
    return machines_note(names, f"{document['workers']} run(s) at a time")


def machines_note(processors: Iterable[str], *more: str) -> str:
    """Processors in words, and what the seconds are worth if there are several."""
    names = sorted(set(processors))
    note = ", ".join([" and ".join(names), *more]) + "."
    if len(names) > 1:
        note += " The seconds are of different machines and compare nothing."
    return note


def coverage_note(document: dict[str, Any]) -> str:
    """How much of the suite there is."""
    rows = document["assets"]
    counts = {key: len({row[key] for row in rows}) for key in ("system", "prompt", "seed")}
    whole = counts["system"] * counts["prompt"] * counts["seed"]
    note = f"{counts['prompt']} of the {len(SUITE)} prompts, {counts['seed']} seed(s)"
    return f"{note}, {len(rows)} assets" + (f" of {whole}." if len(rows) < whole else ".")


def code_note(document: dict[str, Any]) -> list[str]:
    """With which commits the assets were made, where those are several."""
    commits = Counter(row.get("commit") for row in document["assets"])
    if len(commits) < 2:
        return []
    told = ", ".join(f"`{str(name)[:8]}` ({count})" for name, count in commits.items())
    return [
        f"Made with several versions of the code, by commit: {told}. The settings of a system were "
        "the same with all; what the code did beside them may not have been."
    ]


def page(name: str, document: dict[str, Any], results: Sequence[Result]) -> str:
    """The Markdown file."""
    notes = [
        f"`{document['command']}`",
        f"{document['date']}, {machine_note(document)} Means with 95 % intervals over prompts, for "
        "each of which seeds are averaged. A failed run counts as wrong.",
        coverage_note(document),
        *code_note(document),
        *budget_notes(document["budgets"]),
    ]
    mixed = mixed_priors(document)
    if mixed:
        notes.append(f"**The weights of the prior of {', '.join(mixed)} changed on the way.**")
    heading = "\n\n".join([f"# Text to 3D: {name}", *notes])
    return heading + "\n\n" + comparison_markdown(results, is_held_out_prompt, PAIRS)


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
