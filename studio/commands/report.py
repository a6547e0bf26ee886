"""`studio report`: write a run's report again, or one gallery of several runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from studio.errors import ConfigError
from studio.report import write_gallery, write_report
from studio.run_folder import open_run

__all__ = ["run"]


def run(paths: Sequence[Path], *, out: Path | None = None, as_json: bool = False) -> None:
    """Write the page and print where it is.

    Args:
        paths: one run folder, or several for a gallery.
        out: the file; ``report.html`` in the run folder, or ``gallery.html`` here.
        as_json: print the path as JSON.

    Raises:
        ConfigError: no run is named, or one is no run folder.
        StorageError: the file cannot be written.
    """
    runs = [open_run(path) for path in paths]
    if not runs:
        raise ConfigError("No run is named - expected at least one run folder: studio report RUN")
    page = (
        write_report(runs[0], out)
        if len(runs) == 1
        else write_gallery(runs, out or Path("gallery.html"))
    )
    sys.stdout.write(json.dumps({"report": str(page)}) + "\n" if as_json else f"{page}\n")
