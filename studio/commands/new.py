"""`studio new`: list the presets, or print one to start a scene file from."""

from __future__ import annotations

import json
import re
import sys
from itertools import takewhile

from studio.config import load_task
from studio.errors import ConfigError
from studio.scene_file import did_you_mean, preset_names, preset_path

__all__ = ["run"]

# A sentence ends where another one, or the command, begins; arXiv numbers have dots too.
SENTENCE = re.compile(r".*?(?=\.(?: [A-Z]| studio |$)|: studio )")


def run(name: str | None, *, as_json: bool = False) -> None:
    """Print the text of the preset ``name``, or a list of all presets.

    Raises:
        ConfigError: no such preset.
    """
    if name is None:
        _list(as_json)
        return
    path = preset_path(name)
    if path is None:
        hint = did_you_mean(name, preset_names())
        raise ConfigError(f"No preset {name!r}.{hint} studio new lists all of them.")
    text = path.read_text(encoding="utf-8")
    sys.stdout.write(json.dumps({"name": name, "text": text}) + "\n" if as_json else text)


def _list(as_json: bool) -> None:
    """One line for each preset: its name and the first sentence of the comment at its top."""
    rows = {name: _about(load_task(name).text) for name in preset_names()}
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    width = max(map(len, rows))
    for name, about in rows.items():
        sys.stdout.write(f"{name:<{width}}  {about}\n")
    sys.stderr.write("Copy one with: studio new NAME > mine.yaml\n")


def _about(text: str) -> str:
    """What a preset says of itself first."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("# ").strip() for line in lines)
    found = SENTENCE.match(comment)
    return found[0] if found else comment
