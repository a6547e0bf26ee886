"""pydantic's findings in our words: the full key path, what was expected, what to try.

Works on the dictionaries that ``ValidationError.errors()`` gives, together with the config types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.config_types import (
    child_type,
    describe,
    field_docs,
    hints_of,
    kind_of,
    members,
    pick_member,
)
from studio.scene_file import did_you_mean

__all__ = ["messages"]


def messages(tp: Any, tree: Any, errors: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Key path and message of each of pydantic's ``errors`` about ``tree``, a mapping of ``tp``."""
    for item in errors:
        place = _locate(tp, tree, item["loc"])
        if item["type"] == "value_error":
            for line in str(item["ctx"]["error"]).split("\n"):
                yield f"{place.path}: {line}", _own_message(place, line.strip())
        else:
            yield place.path, _message(place, item["type"])


@dataclass(frozen=True)
class _Place:
    """Where an error is."""

    path: str
    owner: Any
    """Type that holds the entry, perhaps a union."""
    owner_class: type | None
    """The member of that union which holds it."""
    tp: Any
    """Type of the entry, or None when there is no such key."""
    value: Any


def _locate(tp: Any, tree: Any, loc: tuple[str | int, ...]) -> _Place:
    """What pydantic's location means.

    Its locations hold a kind after a union, and a branch name inside ``float | tuple``; the first
    is skipped, the second ends the path.
    """
    path: list[str] = []
    owner, owner_class, node = None, None, tree
    for part in loc:
        is_key = isinstance(node, dict) and part in node
        if isinstance(node, dict) and not is_key and part == node.get("kind"):
            continue
        child = child_type(tp, part, node)
        if child is None and not (is_key and members(tp)):
            break
        path.append(str(part))
        owner, owner_class, tp = tp, pick_member(tp, node), child
        is_item = isinstance(node, list) and isinstance(part, int) and part < len(node)
        node = node[part] if is_key or is_item else None
    return _Place(".".join(path), owner, owner_class, tp, node)


def _own_message(place: _Place, text: str) -> str:
    """A message of a config class, with the full path in front of the key it begins with."""
    parent, _, last = place.path.rpartition(".")
    if last and text.startswith(f"{last}."):
        return f"{parent}.{text}" if parent else text
    first = re.match(r"\w+", text)
    cls = pick_member(place.tp, place.value)
    if cls and first and first[0] in hints_of(cls):
        return f"{place.path}.{text}" if place.path else text
    return f"{place.path}: {text}" if place.path else text


def _message(place: _Place, error_type: str) -> str:
    """One line: what is wrong, what was expected, what to do."""
    path, last = place.path, place.path.rpartition(".")[2]
    if error_type == "unexpected_keyword_argument":
        known = list(hints_of(place.owner_class)) if place.owner_class else []
        return f"{path}: unknown key.{did_you_mean(last, known) or _known('keys', known)}"
    if error_type == "missing" and place.value is None:
        doc = field_docs(place.owner_class).get(last, "") if place.owner_class else ""
        return f"{path}: is missing - expected {describe(place.tp)}. {doc}".rstrip()
    if error_type == "union_tag_invalid":
        return _unknown_kind(f"{path}.kind", place.value["kind"], place.tp)
    if error_type == "literal_error" and last == "kind":
        return _unknown_kind(path, place.value, place.owner)
    hint = " Put it in quotes." if place.tp is str and place.value is not None else ""
    return f"{path}: got {json.dumps(place.value)} - expected {describe(place.tp)}.{hint}"


def _unknown_kind(path: str, kind: Any, tp: Any) -> str:
    """No config class of the union ``tp`` has this kind."""
    known = [str(kind_of(cls)) for cls in members(tp)]
    return f"{path}: unknown {kind!r}.{did_you_mean(kind, known)}{_known('kinds', known)}"


def _known(what: str, names: Sequence[str]) -> str:
    """``" Known keys: a, b."``"""
    return f" Known {what}: {', '.join(names)}."
