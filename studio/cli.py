"""The `studio` command: verbs, their options, and exit codes. Bodies are in ``studio.commands``.

Nothing heavy is imported before a verb needs it. Results go to stdout, everything else to stderr;
an error is one clear line and one exit code (see ``studio.errors`` and ``studio.usage``).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from studio.lora_cli import lora_app
from studio.options import Device, Json, RunArgument, RunsArgument, What
from studio.usage import START, VerbGroup, print_version, run_app

__all__ = ["app", "main"]

app = typer.Typer(
    name="studio",
    cls=VerbGroup,
    help="Text in, 3D asset out.",
    epilog=START,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What every verb shares: nothing but the version."""


def verb(name: str) -> Callable[[Callable], Callable]:
    """Register a verb once the module with its body exists."""
    if find_spec(f"studio.commands.{name}") is None:
        return lambda function: function
    return app.command(name)


@verb("run")
def run(
    scene: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCENE",
            help="A scene file, a preset, or a prompt in quotes; then overrides such as "
            "stages.0.steps=200. Without one: the demo preset.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Same as prompt=TEXT.")] = None,
    steps: Annotated[int | None, typer.Option(help="Same as steps=N, over all stages.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same as seed=N.")] = None,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the resolved scene only.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--eval", help="Measure the asset, as studio eval does.")
    ] = False,
    log: Annotated[
        str, typer.Option(help="csv (always) and tensorboard (extra: log), by commas.")
    ] = "csv",
    view: Annotated[
        bool, typer.Option("--view", help="Serve a page about the run while it goes on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a 3D asset, pictures or a try-on, or learn a subject."""
    from studio.commands import run as command

    flags = {"prompt": prompt, "steps": steps, "seed": seed, "device": device}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    command.run(
        [*(scene or []), *overrides],
        out=out,
        resume=resume,
        dry_run=dry_run,
        evaluate=evaluate,
        log=log,
        view=view,
        as_json=as_json,
    )


@verb("sweep")
def sweep(
    scene: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SCENE",
            help="As of run; then values to compare, such as stages.0.steps=200,400.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt a line.", show_default=False)
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-3, or 1,5,7.")] = None,
    side_by_side: Annotated[
        bool,
        typer.Option("--side-by-side", help="First values together, second ones, …; not all."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the sweep's folder.")] = None,
    workers: Annotated[int, typer.Option(help="Runs at a time.")] = 1,
    threads: Annotated[int | None, typer.Option(help="Threads of each run.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Make failed runs again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs only.")] = False,
    as_json: Json = False,
) -> None:
    """Make a scene with several values, and compare the results."""
    from studio.batch import BatchConfig
    from studio.commands import sweep as command

    command.run(
        scene or [],
        prompts=prompts,
        seeds=seeds,
        side_by_side=side_by_side,
        out=out,
        name=name,
        batch=BatchConfig(workers=workers, threads=threads, retry=retry),
        dry_run=dry_run,
        as_json=as_json,
    )


@verb("new")
def new(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Preset; without it all are listed.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a preset to start a scene file from."""
    from studio.commands import new as command

    command.run(name, as_json=as_json)


@verb("explain")
def explain(
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="Such as guidance_scale or stages.cameras."),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of scene files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a key of a scene file means: type, default, paper."""
    from studio.commands import explain as command

    command.run(key, schema=schema, as_json=as_json)


@verb("doctor")
def doctor(
    scene: Annotated[
        list[str] | None, typer.Argument(metavar="SCENE", help="As of run; are its files here?")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, backends, weights."""
    from studio.commands import doctor as command

    command.run(scene or [], as_json=as_json)


@verb("eval")
def evaluate(
    runs: RunsArgument = None,
    prior: Annotated[
        Path | None, typer.Option(help="Evaluate this prior instead, a diffusers folder.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Samples of a prior.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Where a prior's samples are written.")] = None,
    as_json: Json = False,
) -> None:
    """Measure finished runs against the true objects, or a prior."""
    from studio.commands import eval as command

    command.run(runs or (), prior=prior, samples=samples, out=out, as_json=as_json)


@verb("train")
def train(
    what: What,
    out: Annotated[
        Path, typer.Option(help="Folder of the weights; of judge and image-text the file.")
    ] = ...,
    preset: Annotated[str, typer.Option(help="cpu (hours) or gpu (minutes).")] = "cpu",
    work: Annotated[Path | None, typer.Option(help="Folder of data and checkpoints.")] = None,
    text_source: Annotated[
        Path | None, typer.Option(help="Folder of all-MiniLM-L6-v2, for pocket.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Model to begin from, or to go on.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of images or edit pairs.")] = None,
    objects_share: Annotated[
        float | None, typer.Option(help="Share of real objects in the images, for pocket.")
    ] = None,
    parts: Annotated[str, typer.Option(help="Of --start: denoiser or all.")] = "denoiser",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Make the shipped weights again, or go on with a training."""
    from studio.commands import train as command

    command.run(
        what,
        out=out,
        preset=preset,
        work=work,
        text_source=text_source,
        start=start,
        images=images,
        objects_share=objects_share,
        parts=parts,
        steps=steps,
        device=device,
        as_json=as_json,
    )


@verb("personalize")
def personalize(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTOS",
            help="A folder of photos or a file; then overrides such as method.lora.rank=8.",
            show_default=False,
        ),
    ] = None,
    word: Annotated[str | None, typer.Option(help="What the subject is, such as dog.")] = None,
    method: Annotated[
        str | None, typer.Option(help="textual_inversion, dreambooth, dreambooth_lora or dco.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="How prompts name the subject.")] = None,
    steps: Annotated[int | None, typer.Option(help="Same as method.loop.steps=N.")] = None,
    seed: Annotated[int | None, typer.Option(help="Same as method.loop.seed=N.")] = None,
    device: Device = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings only.")] = False,
    as_json: Json = False,
) -> None:
    """Teach the prior your own subject from a few photos."""
    from studio.commands import personalize as command

    flags = {
        "subject.word": word,
        "method.kind": method,
        "subject.token": token,
        "method.loop.steps": steps,
        "method.loop.seed": seed,
        "device": device,
    }
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    sources = [*(photos or []), *overrides]
    command.run(sources, out=out, resume=resume, dry_run=dry_run, as_json=as_json)


@verb("export")
def export(
    path: RunArgument,
    formats: Annotated[
        str | None, typer.Option("--format", help="Comma-separated: glb, obj, ply.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Density of the surface, or auto.", show_default=False)
    ] = None,
    faces: Annotated[int | None, typer.Option(help="Triangles after decimation.")] = None,
    texture: Annotated[
        int | None, typer.Option(help="Side of the texture; 0 for vertex colours.")
    ] = None,
    remesh: Annotated[
        str | None, typer.Option(help="none, isotropic or poisson (extra: geometry).")
    ] = None,
    up: Annotated[str | None, typer.Option(help="Up axis of OBJ and PLY: y or z.")] = None,
    height_m: Annotated[float | None, typer.Option(help="Height in metres.")] = None,
    particle: Annotated[
        int | None, typer.Option(help="Which of several particles, counted from 0.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Write the asset of a run again, with other settings."""
    from studio.commands import export as command

    command.run(
        path,
        formats=formats,
        threshold=threshold,
        faces=faces,
        texture=texture,
        remesh=remesh,
        up=up,
        height_m=height_m,
        particle=particle,
        device=device,
        as_json=as_json,
    )


@verb("render")
def render(
    path: RunArgument,
    source: Annotated[
        str, typer.Option(help="field (as trained) or asset (as exported, fast).")
    ] = "field",
    camera: Annotated[str, typer.Option(help="turntable, or a camera path (JSON).")] = "turntable",
    frames: Annotated[int | None, typer.Option(help="Views of the turntable; 60.")] = None,
    size: Annotated[int | None, typer.Option(help="Height, pixels; 256 or the path's.")] = None,
    outputs: Annotated[
        str, typer.Option(help="Side by side: comp_rgb, normal, depth, opacity.")
    ] = "comp_rgb",
    video: Annotated[str, typer.Option(help="Comma-separated: mp4, gif; or empty.")] = "mp4",
    stills: Annotated[bool, typer.Option("--stills", help="Also every view as PNG.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Film a run: a turntable or a camera path."""
    from studio.commands import render as command

    command.run(
        path,
        source=source,
        camera=camera,
        frames=frames,
        size=size,
        outputs=outputs,
        video=video,
        stills=stills,
        device=device,
        as_json=as_json,
    )


@verb("view")
def view(
    path: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder or GLB file.", show_default=False)
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 7007,
    as_json: Json = False,
) -> None:
    """Look at an asset in the browser (extra: view)."""
    from studio.commands import view as command

    command.run(path, port=port, as_json=as_json)


@verb("report")
def report(
    paths: RunsArgument = ...,
    out: Annotated[Path | None, typer.Option(help="The file.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run, or a gallery of several."""
    from studio.commands import report as command

    command.run(paths, out=out, as_json=as_json)


app.add_typer(lora_app, name="lora")


def main() -> None:
    """Entry point of the `studio` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # Windows redirects in an old code page
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    run_app(app)


if __name__ == "__main__":
    main()
