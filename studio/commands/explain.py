"""`studio explain`: what a key of a scene file means, from the config classes themselves."""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from studio.config import dump, json_schema
from studio.config_types import describe, doc_of, field_docs, hints_of, item_type, kind_of, members
from studio.errors import ConfigError
from studio.personalize_configs import PersonalizeConfig
from studio.scene_file import did_you_mean
from studio.task_configs import DEFAULT_TASK, TaskConfig, tasks_of

__all__ = ["Entry", "entries", "run"]

WIDTH = 96
AnyTask = TaskConfig | PersonalizeConfig
"""Whatever studio run takes from a file."""


@dataclass(frozen=True)
class Entry:
    """One key of the scene file."""

    path: str
    """Dotted path without list indices."""
    kind: str | None
    """The kind of its mapping for which the key exists, if there are several."""
    type: str
    default: Any
    doc: str
    tp: Any = dataclasses.field(repr=False, compare=False, default=None)
    """The Python type, to descend."""
    tasks: tuple[str, ...] = dataclasses.field(compare=False, default=())
    """Tasks whose scene files have the key."""
    held: Any = dataclasses.field(repr=False, compare=False, default=None)
    """The default as a config, whose values are the defaults of the keys below."""


def entries(
    tp: Any = AnyTask, path: str = "", tasks: tuple[str, ...] = (), owner: Any = None
) -> Iterator[Entry]:
    """Every key below a config type, depth first; tasks that share a key each give it.

    ``owner`` is what holds the type's value by default: its values are the keys' defaults there.
    """
    for cls in members(tp):
        own = tasks or tasks_of(cls)
        kind = kind_of(cls) if len(members(tp)) > 1 else None
        for field in dataclasses.fields(cls):
            if field.name not in hints_of(cls) or field.name == "kind":
                continue
            hint = hints_of(cls)[field.name]
            below = f"{path}.{field.name}" if path else field.name
            doc = field_docs(cls).get(field.name, "")
            held = getattr(owner, field.name) if type(owner) is cls else _value(field)
            yield Entry(below, kind, describe(hint), _plain(held), doc, hint, own, held)
            yield from entries(item_type(hint) or hint, below, own, held)


def _value(field: dataclasses.Field) -> Any:
    """The default; MISSING when there is none."""
    has_factory = field.default_factory is not dataclasses.MISSING
    return field.default_factory() if has_factory else field.default


def _plain(value: Any) -> Any:
    """A default in plain values; "required" when there is none."""
    return "required" if value is dataclasses.MISSING else dump(value)


def run(key: str | None, *, schema: bool = False, as_json: bool = False) -> None:
    """Print the keys at or below ``key``, or the top level; or the JSON Schema.

    Raises:
        ConfigError: no such key.
    """
    if schema:
        sys.stdout.write(json.dumps(json_schema(AnyTask), indent=2) + "\n")
        return
    found = find(key) if key else _joined(entry for entry in entries() if "." not in entry.path)
    if as_json:
        names = ("path", "kind", "tasks", "type", "default", "doc")
        rows = [{name: getattr(entry, name) for name in names} for entry in found]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    for entry in found:
        sys.stdout.write(_text(entry))
        if key:
            sys.stdout.write(_members_text(entry))
    if key is None:
        sys.stderr.write("Go deeper with: studio explain stages.guidance\n")


def find(key: str) -> list[Entry]:
    """Entries whose path is ``key`` or ends with it.

    Indices and names of list entries in ``key`` are skipped, and a ``kind`` is explained by what
    has it.

    Raises:
        ConfigError: none, with the nearest known names.
    """
    wanted = ".".join(part for part in key.split(".") if not part.isdigit())
    wanted = wanted.removesuffix(".kind")
    everything = list(entries())
    found = _at(everything, wanted)
    if not found and wanted.startswith("stages."):  # stages.shape.steps
        _, _, name_and_rest = wanted.partition(".")
        found = _at(everything, f"stages.{name_and_rest.partition('.')[2]}".rstrip("."))
    if not found:
        names = {entry.path for entry in everything} | {
            entry.path.rpartition(".")[2] for entry in everything
        }
        hint = did_you_mean(wanted, names) or " List the top level with: studio explain"
        raise ConfigError(f"explain: no key {key!r}.{hint}")
    return _joined(found)


def _at(everything: list[Entry], wanted: str) -> list[Entry]:
    """Entries of exactly this path, else those that end with it."""
    exact = [entry for entry in everything if entry.path == wanted]
    return exact or [entry for entry in everything if entry.path.endswith(f".{wanted}")]


def _joined(found: Iterable[Entry]) -> list[Entry]:
    """Keys that mean the same in several tasks, once."""
    joined: list[Entry] = []
    for entry in found:
        if entry in joined:
            place = joined.index(entry)
            tasks = dict.fromkeys((*joined[place].tasks, *entry.tasks))
            joined[place] = dataclasses.replace(joined[place], tasks=tuple(tasks))
        else:
            joined.append(entry)
    return joined


def _text(entry: Entry) -> str:
    """Path, type, default and meaning of one key."""
    kind = f"  [kind {entry.kind}]" if entry.kind else ""
    if DEFAULT_TASK not in entry.tasks:
        kind = f"  [task {', '.join(entry.tasks)}]{kind}"
    default = "" if entry.default == "required" else f"  default {_short(entry.default)}"
    required = "  required" if entry.default == "required" else ""
    type_words = "" if members(item_type(entry.tp) or entry.tp) else f"  {entry.type}"
    if members(entry.tp):
        default = ""
    head = f"{entry.path}{kind}{type_words}{default}{required}\n"
    body = textwrap.fill(entry.doc, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return head + (body + "\n" if entry.doc else "")


def _members_text(entry: Entry) -> str:
    """The kinds that a key admits, each with its own keys."""
    lines = []
    hint = item_type(entry.tp) or entry.tp
    for cls in members(hint):
        kind = kind_of(cls)
        title = f"kind: {kind} - {doc_of(cls)}" if kind else doc_of(cls)
        lines.append(textwrap.fill(title, WIDTH, initial_indent="  ", subsequent_indent="    "))
        for name, tp in hints_of(cls).items():
            if name == "kind":
                continue
            field = cls.__dataclass_fields__[name]
            value = getattr(entry.held, name) if type(entry.held) is cls else _value(field)
            default = "" if members(tp) else f" = {_short(_plain(value))}"
            doc = field_docs(cls).get(name, "")
            text = f"{name}{default}  {doc}" if get_args(tp) or doc else name
            lines.append(
                textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="        ")
            )
    return "\n".join(lines) + "\n" if lines else ""


def _short(value: Any) -> str:
    """A default on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
