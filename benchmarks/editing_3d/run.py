"""Runs a scene of two objects and measures each: binding, places, and what an edit changed.

Each row of the results is the run of one scene, and holds the arguments it was made with:

    python -m benchmarks.editing_3d.run pocket-regional stages.0.steps=200 --out FILE.json
    python -m benchmarks.editing_3d.run pocket-delta-edit edit.run=RUN --objects "green mushroom" \
        "blue teapot" --out FILE.json

Objects are those of the scene's layout, or of the layout of the run that it edits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.editing_3d.measures import (
    Placed,
    alone,
    binding,
    change_in,
    layout_error,
    views_of,
)
from scenes.toybox.catalog import COLOR_NAMES, KINDS
from studio.config import dump_yaml, load_scene
from studio.configs import SceneConfig
from studio.evaluation.judge import load_judge
from studio.evaluation.views import eval_cameras
from studio.layout_configs import ObjectBoxConfig
from studio.resuming import scene_of
from studio.run_folder import RunFolder, create_run, write_atomic
from studio.runner import Runner
from studio.stages import load_stage

N_VIEWS = 12
SIZE = 128


def main(argv: Sequence[str] | None = None) -> None:
    """Run, measure, add a row to the results, and draw what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scene", help="preset or scene file")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    parser.add_argument(
        "--objects", nargs="*", default=[], help="what they shall be, by color kind"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    scene = load_scene(options.scene, options.overrides)
    run = create_run(
        options.runs, prompt=scene.config.prompt, method=scene.name, seed=scene.config.seed, info={}
    )
    write_atomic(run.scene_path, scene.text)
    write_atomic(run.resolved_path, dump_yaml(scene.config))
    Runner(scene.config, run).optimise()
    row = {
        "scene": options.scene,
        "overrides": options.overrides,
        "optimise_s": run.read_info()["seconds"]["optimise"],
        **measure(run, scene.config, options.objects),
    }
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")
    sys.stdout.write(json.dumps(row, indent=1) + f"\n{run.path}\n")


def measure(run: RunFolder, scene: SceneConfig, names: Sequence[str]) -> dict:
    """Binding and layout error of each object, and the change to the run that was edited."""
    source = RunFolder(run.start_dir) if scene.edit else None
    layout = scene.layout or scene_of(source).layout
    objects = [_placed(item, name) for item, name in zip(layout, names or [""] * len(layout))]
    cameras, judge = eval_cameras(N_VIEWS, size=SIZE), load_judge()
    renderer = load_stage(run).renderer
    images = views_of(renderer, cameras)
    shown, pictures, found = [_row_of(images)], [], {}
    for item in objects:
        views = alone(renderer, eval_cameras(N_VIEWS), item)
        pictures.append(_row_of(views))
        found[f"{item.color} {item.kind}"] = {
            "binding": binding(judge, views, item),
            "layout_error": layout_error(images, cameras, item),
        }
    row = {"objects": found}
    if source is not None:
        before = views_of(load_stage(source).renderer, cameras)
        shown.insert(0, _row_of(before))
        parts = change_in(before, images, cameras, [item.box for item in objects])
        row["change"] = dict(zip([*found, "elsewhere"], parts, strict=True))
    for name, rows in (("views.png", shown), ("objects.png", pictures)):
        sheet = (torch.cat(rows) * 255).round().to(torch.uint8)
        Image.fromarray(sheet.numpy()).save(run.path / name)
    return row


def _row_of(images: torch.Tensor) -> torch.Tensor:
    """Every third view, side by side."""
    return images[::3].movedim(0, 1).flatten(1, 2)


def _placed(item: ObjectBoxConfig, name: str) -> Placed:
    """What stands in a box, by its colour and the longest noun of the toybox in its words."""
    phrase = name or item.prompt
    nouns = {noun: kind for kind, entry in KINDS.items() for noun in (entry.noun, *entry.synonyms)}
    named = [noun for noun in nouns if f" {noun} " in f" {phrase} "]
    colors = [word for word in phrase.split() if word in COLOR_NAMES]
    if not named or not colors:
        raise SystemExit(
            f"'{phrase}' names no colour or no kind of the toybox - expected --objects with both "
            "for each object, such as 'red mushroom'."
        )
    return Placed(nouns[max(named, key=len)], colors[0], item.box)


if __name__ == "__main__":
    main()
