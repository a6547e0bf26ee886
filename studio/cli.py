"""The `studio` command: verbs, their options, and exit codes. Bodies are in ``studio.commands``.

Nothing heavy is imported before a verb needs it. Results go to stdout, everything else to stderr;
an error is one clear line and one exit code (see ``studio.errors``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from studio.errors import StudioError

__all__ = ["app", "main"]

app = typer.Typer(
    name="studio",
    help="Text in, 3D asset out.",
    epilog='Start with: studio run "a small blue teapot"',
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)
]
RunArgument = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]


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
    as_json: Json = False,
) -> None:
    """Make a 3D asset from a prompt or a scene file."""
    from studio.commands import run as command

    flags = {"prompt": prompt, "steps": steps, "seed": seed, "device": device}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    command.run(
        [*(scene or []), *overrides], out=out, resume=resume, dry_run=dry_run, as_json=as_json
    )


@verb("new")
def new(
    name: Annotated[
        str | None, typer.Argument(help="Preset; without it all are listed.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a preset to start a scene file from."""
    from studio.commands import new as command

    command.run(name, as_json=as_json)


@verb("explain")
def explain(
    key: Annotated[
        str | None, typer.Argument(help="Such as guidance_scale or stages.cameras.")
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
        str | None, typer.Argument(help="Also check the weights this scene needs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: versions, devices, backends, weights."""
    from studio.commands import doctor as command

    command.run(scene, as_json=as_json)


def main() -> None:
    """Entry point of the `studio` command."""
    try:
        app()
    except StudioError as error:
        if "--json" in sys.argv:
            problem = {"error": type(error).__name__, "message": str(error)}
            sys.stdout.write(json.dumps({**problem, "exit_code": error.exit_code}) + "\n")
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # `studio explain | head`
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
