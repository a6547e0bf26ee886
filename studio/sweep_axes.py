"""The axes of a sweep: which settings take which values, and the runs that are made of them.

Values come from overrides, where commas part them, or from a file of prompts and a range of seeds.

    axes, fixed = axes_of(["seed=0,1", "steps=200"])
    for row in combinations(axes):
        print(label_of(axes, row), [*fixed, *overrides_of(axes, row)])
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from studio.errors import ConfigError
from studio.scene_file import parse_override

__all__ = [
    "Axis",
    "axes_of",
    "combinations",
    "label_of",
    "overrides_of",
    "prompt_axis",
    "seed_axis",
    "split_values",
]

MAX_RUNS = 1000
"""More is a mistake in the values, or a job for several sweeps."""
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Axis:
    """A setting and the values it takes."""

    key: str
    """Dotted path."""
    values: tuple[str, ...]
    """What stands after ``key=`` in an override, each."""


def split_values(text: str) -> tuple[str, ...]:
    """Split at commas that stand outside of brackets and quotes: ``1,[2,3],'a, b'`` has three."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not parts[-1].strip():
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        if letter == "," and not quote and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return tuple(part.strip() for part in parts)


def axes_of(
    overrides: Sequence[str], *, given: Sequence[Axis] = ()
) -> tuple[list[Axis], list[str]]:
    """The settings with several values, and the overrides with one.

    Args:
        overrides: ``key.path=value`` or ``key.path=a,b,c``; quotes that keep a comma in are taken
            off.
        given: more axes, which come last.

    Raises:
        ConfigError: a key stands twice, or a list has an empty or a repeated value.
    """
    axes: list[Axis] = []
    fixed: list[str] = []
    seen: set[str] = set()
    for axis in (*map(_axis, overrides), *given):
        if axis.key in seen:
            raise ConfigError(
                f"{axis.key} stands twice - write all its values in one: {axis.key}=A,B"
            )
        seen.add(axis.key)
        if len(axis.values) == 1:
            fixed.append(f"{axis.key}={axis.values[0]}")
        else:
            axes.append(axis)
    return axes, fixed


def _axis(override: str) -> Axis:
    """The values of an override."""
    key, _, raw = parse_override(override)
    values = split_values(raw)
    if len(values) == 1:
        return Axis(key, (_plain(raw),))
    if "" in values or len(set(values)) < len(values):
        what = "an empty value" if "" in values else "a value twice"
        raise ConfigError(f"{key}: {raw!r} has {what} - expected different values, as in A,B,C")
    return Axis(key, tuple(map(_plain, values)))


def prompt_axis(path: Path | None) -> list[Axis]:
    """The prompts of a file, each as it stands: no quotes and no commas are read in them."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--prompts {path}: not UTF-8 text - expected one prompt a line."
        ) from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"--prompts {path}: no prompt in it - expected one on each line.")
    twice = [prompt for k, prompt in enumerate(prompts) if prompt in prompts[:k]]
    if twice:
        raise ConfigError(f"--prompts {path}: {twice[0]!r} stands twice - expected it once.")
    return [Axis("prompt", tuple(prompts))]


def seed_axis(text: str | None) -> list[Axis]:
    """Seeds such as 0-3 or 1,5,7."""
    if text is None:
        return []
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"--seeds is {text!r} - expected such as 0-3, or 1,5,7.")
        last = int(match[2] or match[1])
        if last - int(match[1]) > MAX_RUNS:
            raise ConfigError(f"--seeds is {text!r} - expected at most {MAX_RUNS} of them.")
        seeds += range(int(match[1]), last + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds is {text!r}, with a seed twice - expected each once.")
    return [Axis("seed", tuple(map(str, seeds)))]


def combinations(axes: Sequence[Axis], *, side_by_side: bool = False) -> list[tuple[str, ...]]:
    """The values of each run; the last axis changes fastest.

    Raises:
        ConfigError: axes of unequal length side by side, or too many runs.
    """
    if side_by_side and len({len(axis.values) for axis in axes}) > 1:
        lengths = ", ".join(f"{axis.key} has {len(axis.values)}" for axis in axes)
        raise ConfigError(f"--side-by-side: {lengths} values - expected as many of each.")
    lists = [axis.values for axis in axes]
    count = len(lists[0]) if side_by_side and lists else 1
    for values in [] if side_by_side else lists:
        count *= len(values)
    if count > MAX_RUNS:
        raise ConfigError(f"The sweep has {count} runs - expected at most {MAX_RUNS}.")
    return list(zip(*lists)) if side_by_side and lists else list(itertools.product(*lists))


def overrides_of(axes: Sequence[Axis], row: Sequence[str]) -> list[str]:
    """The values of a run as overrides."""
    return [f"{axis.key}={value}" for axis, value in zip(axes, row, strict=True)]


def _plain(value: str) -> str:
    """``"a, b"`` as a, b; all else as it stands."""
    if value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) > 1:
        read = yaml.safe_load(value)
        return read if isinstance(read, str) else value
    return value


def label_of(axes: Sequence[Axis], row: Sequence[str]) -> str:
    """What tells a run from the others of the sweep."""
    pairs = [
        value if axis.key == "prompt" else f"{axis.key.split('.')[-1]}={value}"
        for axis, value in zip(axes, row, strict=True)
    ]
    return ", ".join(pairs) or "the scene as it is"
