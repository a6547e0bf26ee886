"""The command line's own errors, told like all others: one line that says what to do next.

    app = typer.Typer(cls=VerbGroup)
    run_app(app)

New versions of typer bring a copy of click, old ones use click itself; so exceptions are told apart
by what they carry, not by where their class comes from.
"""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from renderers.errors import is_out_of_memory
from studio.errors import ConfigError, Interrupted, StudioError
from studio.suggestions import quoted

__all__ = ["START", "VerbGroup", "print_version", "run_app", "usage_problem"]

START = 'Start with: studio run "a small blue teapot"'
RUN = "studio run"
INTERRUPTED = 130
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


class VerbGroup(TyperGroup):
    """Verbs; an unknown one is answered with what was probably meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """The verb that the first word names.

        Raises:
            ConfigError: there is none.
        """
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            meant = _meant_run(args) if ctx.parent is None else None
            raise ConfigError(_unknown(args[0], self.list_commands(ctx), ctx.command_path, meant))
        return super().resolve_command(ctx, args)


def _unknown(word: str, verbs: Sequence[str], path: str, meant: str | None) -> str:
    """What is told of a verb that does not exist; ``meant`` is a better guess than any verb."""
    near = difflib.get_close_matches(word, verbs, n=1)
    if meant is None and near:
        meant = f"{path} {near[0]}"
    hint = f"did you mean {meant}?" if meant else f"expected one of {', '.join(verbs)}."
    more = f" {START}" if path == "studio" else f" See: {path} --help"
    return f"no such command {word!r} - {hint}" + (
        "" if meant and meant.startswith(f"{RUN} ") else more
    )


def _meant_run(args: Sequence[str]) -> str | None:
    """The `studio run` that was meant by a preset, a scene file or a prompt without its verb."""
    from studio.scene_file import preset_names

    word, rest = args[0], args[1:]
    presets = preset_names()
    if word in presets or word.endswith((".yaml", ".yml")):
        return f"{RUN} {shlex.join(args)}"
    if " " in word.strip():
        return " ".join([RUN, quoted(word), *([shlex.join(rest)] if rest else [])])
    near = difflib.get_close_matches(word, presets, n=1, cutoff=0.8)
    return f"{RUN} {shlex.join([near[0], *rest])}" if near else None


def usage_problem(error: Any) -> str:
    """What a usage error of click says, in our form."""
    verb = [word for word in sys.argv[1:2] if not word.startswith("-")]
    path = error.ctx.command_path if error.ctx else " ".join(["studio", *verb])
    return f"{path}: {_what_is_wrong(error)} See: {path} --help"


def _what_is_wrong(error: Any) -> str:
    """The first sentences of the message."""
    if hasattr(error, "possibilities"):
        near = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1)
        hint = f" - did you mean {near[0]}?" if near else "."
        return f"no such option {error.option_name}{hint}"
    parameter = getattr(error, "param", None)
    if hasattr(error, "param_type") and parameter is not None:  # it is missing
        is_option = parameter.param_type_name == "option"
        name = max(parameter.opts, key=len) if is_option else parameter.metavar or parameter.name
        about = (getattr(parameter, "help", None) or "a value").rstrip(".")
        return f"{name} is missing - expected {about[:1].lower()}{about[1:]}."
    text = error.format_message().rstrip(".")
    return f"{text[:1].lower()}{text[1:]}."


def print_version(asked: bool) -> None:
    """The installed version; ends the command."""
    if asked:
        from importlib import metadata

        sys.stdout.write(f"studio {metadata.version('text-to-3d-studio')}\n")
        raise typer.Exit


def run_app(app: typer.Typer) -> NoReturn:
    """Run the command line and exit with its code; every error is one line on stderr."""
    try:
        code = app(prog_name="studio", standalone_mode=False)
    except StudioError as error:
        _end(error)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
            error.show()
            sys.exit(error.exit_code)
        _end(ConfigError(usage_problem(error)))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # `studio explain | head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _end(_memory_full(error))
    if code == INTERRUPTED:  # new versions of typer return it in the place of KeyboardInterrupt
        _end(Interrupted("interrupted"))
    sys.exit(code or 0)


def _memory_full(error: Exception) -> StudioError:
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    return StudioError(
        f"The memory is full: {reason} - expected room for the models and the views. Free some (a "
        "GPU may be full of other programs' work), use device=cpu, or the switches of prior.memory "
        "(studio explain prior.memory; docs/memory.md has gigabytes by preset). A run that had "
        "begun goes on with: studio run --resume RUN"
    )


def _end(error: StudioError) -> NoReturn:
    """Tell an error, as JSON too where that is asked for."""
    if "--json" in sys.argv:
        problem = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps({**problem, "exit_code": error.exit_code}) + "\n")
    sys.stderr.write(f"error: {error}\n")
    sys.exit(error.exit_code)
