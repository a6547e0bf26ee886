"""What `studio eval` found, as a section of the report: figures in words, and what they mean."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

__all__ = ["evaluation_section"]

FIGURES: dict[str, tuple[str, str, str]] = {
    "kind_accuracy": ("kind", "views", "the judge names the kind of the prompt"),
    "color_accuracy": ("colour", "views", "it names the colour of the prompt"),
    "janus": ("Janus", "", "fronts too many, 0 to 1"),
    "silhouette_iou": ("silhouette", "%", "overlap with the true object at the best turn"),
    "chamfer": ("Chamfer", "", "distance of the surfaces, in radii of the object"),
    "view_consistency": ("consistency", "", "neighbouring views read alike, 0 to 1"),
    "saturation_error": ("saturation", "", "colourfulness minus the true object's"),
    "chroma": ("colourfulness", "", "mean distance of the colours from grey"),
}
"""Name, unit and meaning of each figure, in the order shown."""
ONLY_WITHOUT_TRUTH = {"chroma"}
N_SHOWN = 3


def evaluation_section(found: Mapping[str, Any]) -> str:
    """The section, or nothing when the run was not evaluated.

    Args:
        found: the entry "evaluation" of `run.json`.
    """
    known = found.get("kind") is not None
    cells = [
        _cell(name, float(found[name]), found)
        for name in FIGURES
        if isinstance(found.get(name), (int, float)) and not (known and name in ONLY_WITHOUT_TRUTH)
    ]
    if not cells:
        return ""
    return (
        f'<h2>Evaluation</h2><section class="card evaluation"><p>{_judgement(found, known)}</p>'
        f'<dl class="facts">{"".join(cells)}</dl></section>'
    )


def _cell(name: str, value: float, found: Mapping[str, Any]) -> str:
    """One figure."""
    title, unit, meaning = FIGURES[name]
    number = f"{value:.2f}"
    if unit == "views":
        total = sum((found.get("seen_kinds") or {}).values())
        number, unit = (f"{round(value * total)}", f"of {total} views") if total else (number, "")
    elif unit == "%":
        number = f"{100 * value:.0f}"
    elif name == "saturation_error":
        number = f"{value:+.2f}"
    return (
        f'<div title="{html.escape(meaning)}"><dt>{title}</dt><dd>{number} <small>{unit}</small>'
        f"</dd><dd><small>{html.escape(meaning)}</small></dd></div>"
    )


def _judgement(found: Mapping[str, Any], known: bool) -> str:
    """What the judge reads, in a sentence."""
    kinds, colors = _votes(found.get("seen_kinds")), _votes(found.get("seen_colors"))
    source = "the exported asset" if found.get("source") == "glb" else "the field before export"
    reads = f"Looking at {source}, the judge reads {kinds}; {colors}."
    if known:
        return reads
    return (
        f"{reads} The prompt names no single toybox object, so there is no true object to compare "
        "with, and the judge knows the toybox only."
    )


def _votes(counts: Mapping[str, int] | None) -> str:
    """Such as "duck in 7 views, penguin in 1"."""
    shown = list((counts or {}).items())[:N_SHOWN]
    words = [f"{html.escape(name.replace('_', ' '))} in {count}" for name, count in shown]
    return f"{words[0]} views, {', '.join(words[1:])}".rstrip(", ") if words else "nothing"
