"""`studio new`: list the presets, or print one to start a scene file from."""

from __future__ import annotations

import json
import sys

from studio.config import load_task
from studio.errors import ConfigError
from studio.scene_file import did_you_mean, preset_names, preset_path

__all__ = ["run"]


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
        known = ", ".join(preset_names())
        raise ConfigError(f"No preset {name!r}.{hint} Presets: {known}.")
    text = path.read_text(encoding="utf-8")
    sys.stdout.write(json.dumps({"name": name, "text": text}) + "\n" if as_json else text)


def _list(as_json: bool) -> None:
    """One line for each preset: its name and the comment at its top."""
    rows = {}
    for name in preset_names():
        scene = load_task(name)
        rows[name] = scene.text.split("\n")[0].lstrip("# ").strip()
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    for name, about in rows.items():
        sys.stdout.write(f"{name:<16} {about}\n")
    sys.stderr.write("Copy one with: studio new NAME > mine.yaml\n")
