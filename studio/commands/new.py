"""`studio new`: list the presets, or print one to start a scene file from."""

from __future__ import annotations

import json
import re
import sys
from itertools import takewhile

from studio.errors import ConfigError
from studio.preset_list import GROUPS
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
    """The presets by what they need; as JSON, the first sentence of the comment in each."""
    if as_json:
        paths = {name: preset_path(name) for name in preset_names()}
        rows = {name: _about(path.read_text(encoding="utf-8")) for name, path in paths.items()}
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    width = max(len(name) for group in GROUPS.values() for name in group)
    for heading, group in GROUPS.items():
        lines = [f"  {name:<{width}}  {about}\n" for name, about in group.items()]
        sys.stdout.write(f"{heading}:\n{''.join(lines)}\n")
    sys.stderr.write("Copy one with: studio new NAME > mine.yaml\n")


def _about(text: str) -> str:
    """What a preset says of itself first."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("# ").strip() for line in lines)
    found = SENTENCE.match(comment)
    return found[0] if found else comment
