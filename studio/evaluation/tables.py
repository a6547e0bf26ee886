"""Runs as a plain table for a terminal: one line each, and their means by method."""

from __future__ import annotations

from collections.abc import Sequence

from studio.evaluation.comparison import Result, systems_of

__all__ = ["runs_table"]

COLUMNS: dict[str, str] = {
    "kind_accuracy": "kind",
    "color_accuracy": "color",
    "both_accuracy": "both",
    "janus": "janus",
    "silhouette_iou": "iou",
    "chamfer": "chamfer",
    "view_consistency": "same",
    "saturation_abs": "satur.",
    "saturation_error": "bias",
}
WIDTH, COST_WIDTH, MOST = 8, 7, 30


def runs_table(results: Sequence[Result], labels: Sequence[str] | None = None) -> str:
    """One line for each run, then the mean of each method that has several.

    Args:
        results: at least one.
        labels: what tells the runs apart; prompt, method and seed when None.
    """
    labels = list(labels or _labels(results))
    rows = [(_short(label), result) for label, result in zip(labels, results, strict=True)]
    means = []
    for system in systems_of(results):
        own = [result for result in results if result.system == system]
        if len(own) > 1:
            means.append((_short(f"mean of {system} ({len(own)})"), own))
    width = max(len(label) for label, _ in [*rows, *means]) + 1
    heading = [f"{name:>{WIDTH}}" for name in COLUMNS.values()]
    heading += [f"{name:>{COST_WIDTH}}" for name in ("min", "GiB", "evals")]
    lines = [" " * width + "".join(heading)]
    lines += [f"{label:<{width}}{_cells([result])}{_word(result)}" for label, result in rows]
    lines += [f"{label:<{width}}{_cells(own)}" for label, own in means]
    return "\n".join(lines) + "\n"


def _labels(results: Sequence[Result]) -> list[str]:
    """The prompt, and what else differs between the runs."""
    systems = len(systems_of(results)) > 1
    seeds = len({result.seed for result in results}) > 1
    return [
        result.prompt
        + (f", {result.system}" if systems else "")
        + (f", seed {result.seed}" if seeds else "")
        for result in results
    ]


def _short(label: str) -> str:
    """The beginning and the end, which tells runs apart."""
    return label if len(label) <= MOST else label[: MOST // 2] + "…" + label[1 - MOST // 2 :]


def _cells(results: Sequence[Result]) -> str:
    """Means of all columns."""
    cells = [_number(_mean(results, name), WIDTH, ".3f") for name in COLUMNS]
    seconds = _mean(results, "seconds")
    cells.append(_number(None if seconds is None else seconds / 60, COST_WIDTH, ".1f"))
    cells.append(_number(_mean(results, "peak_memory_gib"), COST_WIDTH, ".2f"))
    cells.append(_number(_mean(results, "denoiser_evaluations"), COST_WIDTH, ".0f"))
    return "".join(cells)


def _word(result: Result) -> str:
    """What is not as it should be."""
    return "" if result.status == "done" else f"  {result.status}"


def _mean(results: Sequence[Result], name: str) -> float | None:
    values = [value for result in results if (value := result.value(name)) is not None]
    return sum(values) / len(values) if values else None


def _number(value: float | None, width: int, form: str) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}{form}}"
