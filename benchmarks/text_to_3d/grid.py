"""Views of every asset of a comparison in one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from studio.evaluation.comparison import Result, systems_of
from studio.evaluation.suite import is_held_out_prompt
from studio.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.text_to_3d.kept import Key

__all__ = ["PANEL", "VIEWS", "asset_strip", "grid"]

PANEL = 72  # pixels of one view
VIEWS = 4
COLUMNS = 4  # of the grid of a single system


def grid(results: Sequence[Result], kept: Mapping[Key, Tensor]) -> Tensor | None:
    """Four views of every asset: rows are prompts, columns systems; the first seed of each.

    The prompts of a single system stand in several columns. The bar under an asset is green when
    the judge names kind and colour in most of its views. A run that failed leaves a word, one that
    had no turn yet a grey field.

    Args:
        results: of the comparison.
        kept: views of assets whose runs are gone.
    """
    from studio.evaluation.sheets import comparison_sheet

    systems = systems_of(results)
    prompts = list(dict.fromkeys(result.prompt for result in results))
    first = {(r.prompt, r.system): r for r in reversed(results)}
    strips, right = [], []
    for prompt in prompts:
        found = [first.get((prompt, system)) for system in systems]
        strips.append([asset_strip(result, kept) for result in found])
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


def asset_strip(
    result: Result | None, kept: Mapping[Key, Tensor] | None = None
) -> Tensor | str | None:
    """Views of an asset side by side; how it ended if there is none; None if it was never made."""
    from studio.evaluation.assets import asset_glb
    from studio.evaluation.sheets import filmstrip
    from studio.evaluation.views import eval_cameras, normalized, render_mesh
    from studio.export.read import load_asset

    if result is None:
        return None
    glb = asset_glb(RunFolder(result.run)) if result.run else None
    if glb is None:
        key = (result.system, result.prompt, result.seed)
        return (kept or {}).get(key, result.status)
    return filmstrip(render_mesh(normalized(load_asset(glb)), eval_cameras(VIEWS, size=PANEL)).rgb)
