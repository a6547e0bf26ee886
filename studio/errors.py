"""Errors of the application, each one clear line and one exit code, and the others re-exported.

Exit codes: 0 done; 2 usage, config or storage; 3 weights or backend missing; 4 diverged or empty;
130 interrupted with a checkpoint saved. Form of every message: what is wrong (name and value) -
what was expected - what to do next.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from image_tools.errors import WeightsMissing
from renderers.errors import BackendMissing, EmptyGeometry, ShapeError, StudioError
from studio.suggestions import shell_words

__all__ = [
    "BackendMissing",
    "CheckpointError",
    "ConfigError",
    "Diverged",
    "EmptyGeometry",
    "Interrupted",
    "ShapeError",
    "StorageError",
    "StudioError",
    "WeightsMissing",
    "install_command",
    "require",
]


class ConfigError(StudioError):
    """A scene file, an override or an argument is wrong."""

    exit_code = 2


class StorageError(StudioError):
    """A folder cannot be written, or the disk is full."""

    exit_code = 2


class CheckpointError(StudioError):
    """No checkpoint of a run can be read."""

    exit_code = 2


class Diverged(StudioError):
    """The optimisation produced NaN, an empty scene or unbounded values."""

    exit_code = 4


class Interrupted(StudioError):
    """The user stopped a run; its checkpoint is saved."""

    exit_code = 130


def install_command(extra: str) -> str:
    """How to install an extra into the environment that runs this.

    By path, for the name of this project on a package index would be somebody else's.
    """
    root = Path(__file__).resolve().parent.parent
    pinned = ["-c", str(root / "constraints.txt")] if (root / "constraints.txt").is_file() else []
    where = ["-e", f"{root}[{extra}]"] if pinned else [f"text-to-3d-studio[{extra}]"]
    return shell_words([sys.executable, "-m", "pip", "install", *pinned, *where])


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional package, or say how to install it.

    Raises:
        BackendMissing: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise BackendMissing(
            f"The package '{module}' is not installed; it is needed for {why}. "
            f"Install it with: {install_command(extra)}"
        ) from error
