"""Make the 32 assets of the text-to-3D suite, measure them, and write the comparison.

    python -m benchmarks.text_to_3d.run_suite --name demo-sds
    python -m benchmarks.text_to_3d.run_suite --name smoke --limit 1 --set steps=10

Calling it again continues: finished runs are skipped, interrupted ones resumed, and failed ones are
recorded as such. Results go to ``benchmarks/results/text_to_3d--NAME.{json,md,png}``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from studio.commands import run as run_command
from studio.errors import Interrupted, StudioError
from studio.evaluation.assets import AssetMetrics, asset_glb, evaluate_run
from studio.evaluation.judge import load_judge
from studio.evaluation.sheets import filmstrip, judged_sheet
from studio.evaluation.suite import SUITE, SuitePrompt, markdown, plain_summary
from studio.evaluation.views import eval_cameras, normalized, render_mesh
from studio.export.read import load_asset
from studio.previews import save_png
from studio.progress import say
from studio.run_folder import RunFolder, slug, write_atomic

SCHEMA = "text_to_3d/1"
RESULTS = Path(__file__).resolve().parent.parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "numba", "trimesh", "xatlas")
PANEL = 96  # pixels of one view on the contact sheet


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="demo", help="name of the result files")
    parser.add_argument("--preset", default="demo", help="preset or scene file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--limit", type=int, default=len(SUITE), help="first N prompts only")
    parser.add_argument("--runs", type=Path, help="folder of the runs (runs/suite-NAME)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.runs = options.runs or Path("runs") / f"suite-{options.name}"
    return options


def existing_run(runs: Path, prompt: str) -> RunFolder | None:
    """The newest run of a prompt in the suite's own folder."""
    found = sorted((runs / slug(prompt)).glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    return RunFolder(found[-1].parent) if found else None


@contextlib.contextmanager
def results_to_stderr() -> Iterator[None]:
    """Keep stdout for the suite's own result."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def make_asset(item: SuitePrompt, options: argparse.Namespace) -> RunFolder | None:
    """Run, resume or skip one prompt; None if it failed before a run folder was made."""
    run = existing_run(options.runs, item.prompt)
    if run is not None and run.read_info().get("status") == "done":
        return run
    resumable = run is not None and any(run.checkpoints_dir.iterdir())
    given = [] if resumable else [options.preset, f"prompt={item.prompt}", *options.overrides]
    seed = [] if resumable else [f"seed={options.seed}"]
    try:
        with results_to_stderr():
            run_command.run(
                [*given, *seed], out=options.runs, resume=run.path if resumable else None
            )
    except Interrupted:
        raise
    except StudioError as error:
        say(f"{item.prompt!r} failed: {error}")
    return existing_run(options.runs, item.prompt)


def measure(run: RunFolder | None, judge) -> AssetMetrics | None:
    """The metrics of a finished run, or None."""
    if run is None or asset_glb(run) is None:
        return None
    try:
        metrics = evaluate_run(run, judge)
    except StudioError as error:
        say(f"{run.path}: {error}")
        return None
    run.update_info({"evaluation": metrics.as_dict()})
    return metrics


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
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


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS, check=False
    )
    return done.stdout.strip() or None


def document(
    results: Mapping[str, AssetMetrics | None],
    folders: Mapping[str, RunFolder | None],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Everything about this call of the suite, as JSON values."""
    rows = []
    for item in SUITE[: options.limit]:
        run, metrics = folders[item.prompt], results[item.prompt]
        info = run.read_info() if run else {}
        rows.append(
            {
                "prompt": item.prompt,
                "held_out": item.held_out,
                "status": info.get("status", "failed"),
                "seconds": info.get("seconds"),
                "peak_memory_bytes": info.get("peak_memory_bytes"),
                "steps": info.get("steps_done"),
                "metrics": metrics.as_dict() if metrics else None,
            }
        )
    command = "python -m benchmarks.text_to_3d.run_suite " + " ".join(sys.argv[1:])
    return {
        "schema": SCHEMA,
        "command": command.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "machine": machine(),
        "preset": options.preset,
        "overrides": options.overrides,
        "seed": options.seed,
        "summary": plain_summary(results),
        "assets": rows,
    }


def sheet(folders: Mapping[str, RunFolder | None], results: Mapping[str, AssetMetrics | None]):
    """Four views of every asset over its prompt; green where most views agree with it."""
    strips, labels, right = [], [], []
    for prompt, metrics in results.items():
        glb = asset_glb(folders[prompt]) if folders[prompt] else None
        strip = torch.full((PANEL, 4 * PANEL, 3), 0.9)
        if glb is not None:
            strip = filmstrip(
                render_mesh(normalized(load_asset(glb)), eval_cameras(4, size=PANEL)).rgb
            )
        strips.append(strip)
        both = metrics.both_accuracy if metrics else 0.0
        labels.append(f"{prompt}   {both:.2f}" if metrics else f"{prompt}   failed")
        right.append(both > 0.5)
    return judged_sheet(strips, labels, right, columns=4)


def write(name: str, folder: Path, document: dict[str, Any], table: str, picture) -> Sequence[Path]:
    """Write the three result files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"text_to_3d--{name}.{kind}" for kind in ("json", "md", "png")]
    write_atomic(paths[0], json.dumps(document, indent=2) + "\n")
    heading = (
        f"# Text to 3D: {name}\n\n`{document['command']}`\n\n"
        "Means over assets with 95 % bootstrap intervals.\n\n"
    )
    write_atomic(paths[1], heading + table)
    save_png(paths[2], picture, {"command": document["command"]})
    return paths


def main() -> None:
    """Make, measure, compare."""
    options = arguments()
    judge, folders, results = load_judge(), {}, {}
    for number, item in enumerate(SUITE[: options.limit], start=1):
        say(f"[{number}/{options.limit}] {item.prompt}")
        folders[item.prompt] = make_asset(item, options)
        results[item.prompt] = measure(folders[item.prompt], judge)
    table = markdown(results)
    paths = write(
        options.name,
        options.results,
        document(results, folders, options),
        table,
        sheet(folders, results),
    )
    sys.stdout.write(table + "\n" + "\n".join(map(str, paths)) + "\n")


if __name__ == "__main__":
    main()
