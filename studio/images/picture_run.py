"""A scene that makes pictures as a run: pictures, a sheet of all of them, and what was measured.

    runs/a-red-duck/edit-prompt-to-prompt-s0-20261123-031500/
      run.json  scene.yaml  resolved.yaml  log.txt
      images/source-s0.png  images/edit1-s0.png  …
      sheet.png       one row for each seed; one for all, if each has a single picture
      word_maps.png   if the scene names words
      plan.yaml       of a planner
      results.json    files, prompts, seeds, and how far each picture is from the first of its row

A run that failed keeps what it had drawn; it is made again, not continued.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from image_tools.control.regional_configs import RegionalConfig
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.prior import DiffusionPrior
from studio.config import dump
from studio.contact_sheet import contact_sheet, shown_at
from studio.device import configure, peak_memory_bytes, resolve_device
from studio.errors import Interrupted
from studio.images.configs import (
    ControlImageConfig,
    EditImageConfig,
    ImageTaskConfig,
    ReferenceImageConfig,
    RegionalImageConfig,
    TextImageConfig,
    TryOnConfig,
)
from studio.images.controls import make_controlled
from studio.images.edits import make_editor
from studio.images.heat import HeatRow, check_words, heat_sheet
from studio.images.picture import Draw, Picture, make_drawn
from studio.images.references import make_referenced
from studio.images.regions import make_regional, plan_of, plan_text
from studio.images.try_on import make_try_on
from studio.previews import save_png
from studio.progress import format_seconds, logged_to, say
from studio.run_folder import RunFolder, storage_errors, write_atomic
from studio.suggestions import command

__all__ = ["make_pictures"]

SIDES = (192, 256)  # pixels of a picture in a sheet: of small ones, of large ones


def make_pictures(config: ImageTaskConfig, run: RunFolder) -> dict[str, Path]:
    """Draw, and write everything into a run folder; returns the results by name.

    Raises:
        Interrupted: after Ctrl-C; what was drawn is kept.
        StudioError: anything that a user can cause or cure.
    """
    run.update_info({"status": "running"})
    started = time.monotonic()
    try:
        with logged_to(run.log_path):
            files = _make_or_stop(config, run)
    except Exception as error:
        status = "interrupted" if isinstance(error, Interrupted) else "failed"
        run.update_info({"status": status, "error": str(error)})
        raise
    names = {name: str(path.relative_to(run.path)) for name, path in files.items()}
    seconds = {"pictures": round(time.monotonic() - started, 2)}
    run.update_info({"status": "done", "seconds": seconds, "files": names})
    return files


def _make_or_stop(config: ImageTaskConfig, run: RunFolder) -> dict[str, Path]:
    try:
        return _make(config, run)
    except KeyboardInterrupt:
        kept = len(list(run.images_dir.glob("*.png")))
        raise Interrupted(
            f"Stopped; {kept} pictures are kept in {run.images_dir}. Draw anew, for pictures are "
            f"not continued, with: {command('run', run.resolved_path)}"
        ) from None


def _make(config: ImageTaskConfig, run: RunFolder) -> dict[str, Path]:
    device = resolve_device(config.device)
    configure(device)
    files = {}
    plan = None
    if isinstance(config, RegionalImageConfig):  # before anything slow: a planner may fail
        plan, files["plan"] = plan_of(config), run.path / "plan.yaml"
        with storage_errors(run.path, "write"):
            write_atomic(files["plan"], plan_text(plan))
        say(f"plan {plan.ratio}: {' | '.join(region.prompt for region in plan.regions)}")
    prior = load_prior(config.prior, device)
    facts = {**dump(config.prior), "fingerprint": prior.fingerprint}
    run.update_info({"device": str(device), "prior": facts})
    draw = _drawing(prior, config, plan)
    check_words(prior, config.prompts, config.word_maps)
    drawn = _draw_all(draw, config, run)
    files["images"], files["results"] = run.images_dir, run.path / "results.json"
    with storage_errors(run.path, "write"):
        results = {"task": config.task, "prompt": config.prompt, "pictures": _rows(drawn)}
        write_atomic(files["results"], json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if config.word_maps:
        files["word_maps"] = run.path / "word_maps.png"
        _write_maps(files["word_maps"], prior, drawn, config)
    files["sheet"] = run.path / "sheet.png"
    _write_sheet(files["sheet"], drawn, config)
    run.update_info({"peak_memory_bytes": peak_memory_bytes(device)})
    return files


def _drawing(prior: DiffusionPrior, config: ImageTaskConfig, plan: RegionalConfig | None) -> Draw:
    """What the scene's task draws with."""
    if isinstance(config, TextImageConfig):
        return make_drawn(prior, config)
    if isinstance(config, EditImageConfig):
        return make_editor(prior, config)
    if isinstance(config, ControlImageConfig):
        return make_controlled(prior, config)
    if isinstance(config, ReferenceImageConfig):
        return make_referenced(prior, config)
    if isinstance(config, TryOnConfig):
        return make_try_on(prior, config)
    return make_regional(prior, config, plan)


def _draw_all(draw: Draw, config: ImageTaskConfig, run: RunFolder) -> dict[int, list[Picture]]:
    """Pictures by seed, each written at once."""
    drawn = {}
    for seed in range(config.seed, config.seed + config.count):
        started = time.monotonic()
        drawn[seed] = draw(seed)
        for picture in drawn[seed]:
            settings = _settings(config, seed) | {"prompt": picture.prompt or picture.caption}
            save_png(run.path / _file(picture, seed), picture.image, settings)
        say(f"seed {seed}: {format_seconds(time.monotonic() - started)}")
    return drawn


def _file(picture: Picture, seed: int) -> str:
    """Where a picture lies in the run folder; conditions and plans are the same for every seed."""
    stem = f"{picture.name}-s{seed}" if picture.is_compared else picture.name
    return f"images/{stem}.png"


def _rows(drawn: dict[int, list[Picture]]) -> list[dict[str, Any]]:
    """What `results.json` says of each picture."""
    return [
        {
            "name": picture.name,
            "caption": picture.caption,
            "prompt": picture.prompt,
            "seed": seed,
            "file": _file(picture, seed),
            "difference": _difference(pictures[0], picture),
        }
        for seed, pictures in drawn.items()
        for picture in pictures
    ]


def _difference(first: Picture, picture: Picture) -> float | None:
    """Mean absolute difference of colours in 0..1, where it means something."""
    if not picture.is_compared:
        return None
    return round(float((picture.image - first.image).abs().mean()), 5)


def _settings(config: ImageTaskConfig, seed: int) -> dict[str, Any]:
    """What the PNGs tell of how they were made."""
    sampler = config.sampler
    return {
        "prompt": config.prompt,
        "task": config.task,
        "method": config.means,
        "seed": seed,
        "steps": sampler.steps,
        "guidance_scale": sampler.guidance_scale,
    }


def _write_sheet(path: Path, drawn: dict[int, list[Picture]], config: ImageTaskConfig) -> None:
    """Pictures beside each other, a row for each seed; single ones in one row."""
    side = _side(drawn)
    grid = [
        [shown_at(picture.image[None].cpu(), side)[0] for picture in pictures]
        for pictures in drawn.values()
    ]
    rows = [f"seed {seed}" for seed in drawn]
    columns = [picture.caption for picture in next(iter(drawn.values()))]
    if len(columns) == 1:
        grid, rows, columns = [[line[0] for line in grid]], [""], rows
    sampler = config.sampler
    sheet = contact_sheet(
        grid,
        rows=rows,
        columns=columns,
        title=config.prompt,
        subtitle=f"{config.means.replace('_', ' ')}, {config.prior.kind}, "
        f"{sampler.steps} steps, guidance {sampler.guidance_scale:g}",
    )
    save_png(path, sheet, _settings(config, config.seed))


def _write_maps(
    path: Path, prior: DiffusionPrior, drawn: dict[int, list[Picture]], config: ImageTaskConfig
) -> None:
    """Heat maps of all pictures that have a prompt."""
    rows = [
        HeatRow(f"seed {seed}, {picture.name}", picture, seed)
        for seed, pictures in drawn.items()
        for picture in pictures
        if picture.prompt is not None
    ]
    sheet = heat_sheet(prior, rows, config.word_maps, side=_side(drawn), title=config.prompt)
    save_png(path, sheet, _settings(config, config.seed))


def _side(drawn: dict[int, Sequence[Picture]]) -> int:
    """Pixels of a picture in a sheet."""
    drawn_side = next(iter(drawn.values()))[0].image.shape[0]
    small, large = SIDES
    return small if drawn_side <= small else large
