"""Arguments and options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Device", "Json", "RunArgument", "RunsArgument", "What"]

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)
]
RunsArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="RUN", help="Run folders.", show_default=False)
]


def _checked_what(value: str) -> str:
    """A wrong training is told before a missing --out."""
    from studio.commands.train import check_what

    return check_what(value)


What = Annotated[
    str,
    typer.Argument(
        metavar="WHAT",
        help="pocket (text to image), pocket-mv (several views at once), pocket-ip2p (edits by "
        "instruction), pocket-control-depth, -normal, -edge, -seg or -keypoints (ControlNets), "
        "pocket-uni (all conditions in one adapter), judge or image-text (what studio eval sees "
        "with).",
        callback=_checked_what,
        show_default=False,
    ),
]
