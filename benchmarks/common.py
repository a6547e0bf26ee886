"""Measuring in benchmarks: variants that take turns, their ratio against a bar, and result files.

Absolute times on a shared machine vary several times over, so only ratios of variants measured in
turns in one process mean anything: the figure is the median of the ratios of all rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["Ratio", "arguments", "clock", "commit", "interleaved_ratio", "write_results"]

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "numpy", "numba")


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is than a baseline."""

    name: str
    ratio: float
    """Median over rounds of baseline time over our time."""
    bar: float
    """The least ratio that passes."""
    baseline_ms: float
    ours_ms: float
    """Medians, for orientation only."""
    rounds: int

    @property
    def passed(self) -> bool:
        """Whether the bar is reached."""
        return self.ratio >= self.bar


def arguments(argv: Sequence[str] | None, *, about: str | None) -> argparse.Namespace:
    """The options that all benchmarks have: ``smoke``, ``out`` and ``device``.

    Args:
        argv: the command line; None for that of the process.
        about: docstring of the benchmark; its first line is shown.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "--smoke", action="store_true", help="tiny sizes that check the code; no file without --out"
    )
    add("--out", type=Path, help="a .json file, or the folder of it (default: benchmarks/results)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="what is measured")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, and PyTorch finds no GPU here - expected cpu.")
    return options


def interleaved_ratio(
    name: str,
    *,
    baseline: Callable[[], object],
    ours: Callable[[], object],
    bar: float,
    rounds: int = 15,
    warmup: int = 2,
    budget_s: float = 30.0,
) -> Ratio:
    """Time two variants in turns, at least three rounds, about ``budget_s`` at most, and print."""
    for _ in range(warmup):
        baseline()
        ours()
    slow: list[float] = []
    fast: list[float] = []
    end = time.perf_counter() + budget_s
    while len(slow) < rounds and (time.perf_counter() < end or len(slow) < 3):
        slow.append(_timed(baseline))
        fast.append(_timed(ours))
    result = Ratio(
        name=name,
        ratio=statistics.median(s / f for s, f in zip(slow, fast, strict=True)),
        bar=bar,
        baseline_ms=1e3 * statistics.median(slow),
        ours_ms=1e3 * statistics.median(fast),
        rounds=len(slow),
    )
    verdict = "ok" if result.passed else "MISSED"
    print(
        f"{name}: {result.ratio:.2f}x (bar {bar:g}x, {verdict}; "
        f"{result.baseline_ms:.2f} against {result.ours_ms:.2f} ms)",
        flush=True,
    )
    return result


def _timed(function: Callable[[], object]) -> float:
    start = clock()
    function()
    return clock() - start


def clock() -> float:
    """Seconds of ``perf_counter``; a GPU in use is given the time to do all it was told to."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_results(
    suite: str,
    *,
    ratios: Sequence[Ratio],
    tables: Mapping[str, Sequence[object]] | None = None,
    device: str,
    path: Path | None = None,
) -> Path:
    """Write ratios and tables of dataclasses as JSON, with what is needed to repeat them.

    Args:
        suite: what was measured.
        ratios: speed ratios with their bars.
        tables: further results, lists of dataclasses by name.
        device: what was measured, ``cpu`` or ``cuda``, whatever else the machine has.
        path: file to write, or the folder of ``SUITE--DEVICE.json``; None is that of the results.
    """
    document = {
        "suite": suite,
        "command": "python -m " + _module_name() + " " + " ".join(sys.argv[1:]),
        "machine": f"{_processor(device)}, {os.cpu_count()} cores, {device}",
        "commit": commit(),
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "ratios": [{**dataclasses.asdict(ratio), "passed": ratio.passed} for ratio in ratios],
    }
    for name, rows in (tables or {}).items():
        document[name] = [dataclasses.asdict(row) for row in rows]  # type: ignore[call-overload]
    path = path or RESULTS
    if path.suffix != ".json":
        path = path / f"{suite}--{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {path}")
    return path


def _processor(device: str) -> str:
    """Name of the GPU, or of the CPU where the system tells."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """Short hash of the checkout, if this is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git here
        return None
    return done.stdout.strip() or None


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec is not None else sys.argv[0]
