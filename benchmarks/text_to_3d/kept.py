"""Assets of a result file whose runs are gone: their figures and pictures serve again.

A comparison can take days, and machines come and go. What an earlier call measured stands in
``text_to_3d--NAME.json``, its picture in the sheet beside it. An asset is kept if its system has
the same settings today, and is not made again; where its run folder is there, that is read instead.
Each asset says on which processor it was made, for seconds of two machines compare nothing, and
with which commit, for settings do not tell that the code has changed.

    kept = read_kept(Path("benchmarks/results"), "five", {"demo": load_scene("demo").config})
    kept["demo", "a purple duck", 0].result.value("janus")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.config import dump, validate
from studio.configs import SceneConfig
from studio.errors import ConfigError
from studio.evaluation.comparison import Result
from studio.resuming import changed_keys

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCHEMA", "Kept", "Key", "read_kept", "scene_settings"]

SCHEMA = "text_to_3d/3"
Key = tuple[str, str, int]
"""System, prompt and seed of an asset."""


@dataclass(frozen=True)
class Kept:
    """An asset that an earlier call measured."""

    result: Result
    """Its figures; of no run."""
    processor: str
    """What it was made on."""
    commit: str | None
    """With which code, where that is known."""
    strip: Tensor | None
    """Its views ``[h, w, 3]``, if the sheet shows them."""


def scene_settings(config: SceneConfig) -> dict[str, Any]:
    """What a system is: its scene without prompt and seed."""
    return {key: value for key, value in dump(config).items() if key not in ("prompt", "seed")}


def read_kept(folder: Path, name: str, systems: Mapping[str, SceneConfig]) -> dict[Key, Kept]:
    """The assets of a comparison's result file whose systems are the same today.

    Args:
        folder: of the result files.
        name: of the comparison.
        systems: with any prompt and seed.

    Raises:
        ConfigError: the file is no result of this suite.
    """
    path = folder / f"text_to_3d--{name}.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            return {}
        before = document["scenes"]
        same = {s for s, now in systems.items() if s in before and _is_same(before[s], now)}
        rows = [row for row in document["assets"] if row["system"] in same]
        strips = _strips(path.with_suffix(".png"), document)
        return {key: _kept(row, document, strips.get(key)) for row in rows for key in [_key(row)]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: {type(error).__name__} {error} - expected a result file of this suite. Move "
            "it away to begin anew."
        ) from error


def _is_same(before: Mapping[str, Any], now: SceneConfig) -> bool:
    """Whether settings give what a scene gives; options that are new since have their defaults."""
    tree = {**before, "prompt": now.prompt, "seed": now.seed}
    try:
        old = validate(SceneConfig, tree, where="an earlier result")
    except ConfigError:  # it has what this version does not know
        return False
    return not changed_keys(old, now) and dump(old.export) == dump(now.export)


def _key(row: Mapping[str, Any]) -> Key:
    return row["system"], row["prompt"], row["seed"]


def _kept(row: Mapping[str, Any], document: Mapping[str, Any], strip: Tensor | None) -> Kept:
    known = {field.name: row[field.name] for field in fields(Result) if field.name in row}
    processor = row.get("processor") or document["machine"]["processor"]
    commit = row.get("commit") or document.get("commit")
    return Kept(Result(**{**known, "run": None}), processor, commit, strip)


def _strips(path: Path, document: Mapping[str, Any]) -> dict[Key, Tensor]:
    """Pictures of assets, cut out of the sheet of the first seed of each."""
    from benchmarks.text_to_3d.grid import PANEL, VIEWS
    from image_tools.personalization.class_images import read_image
    from studio.evaluation.sheets import comparison_cells

    rows = document["assets"]
    systems = list(dict.fromkeys(row["system"] for row in rows))
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    if not path.is_file() or len(systems) < 2:
        return {}
    cells = comparison_cells(
        read_image(path), rows=len(prompts), columns=len(systems), size=(PANEL, VIEWS * PANEL)
    )
    first: dict[tuple[str, str], Key] = {}
    for row in rows:
        if row["status"] == "done":
            first.setdefault((row["prompt"], row["system"]), _key(row))
    return {
        key: cells[prompts.index(prompt)][systems.index(system)]
        for (prompt, system), key in first.items()
    }
