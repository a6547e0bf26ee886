"""Reading the types of config dataclasses: union members, paths, and what a type is in words.

``studio.config`` uses it for its messages and ``studio explain`` for its tables. No torch, no
pydantic.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = [
    "child_type",
    "describe",
    "doc_of",
    "field_docs",
    "hints_of",
    "is_union",
    "item_type",
    "kind_of",
    "members",
    "pick_member",
]

SHOWN_KEYS = 3
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field name -> resolved type of a config dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def is_union(tp: Any) -> bool:
    """Whether ``tp`` is ``A | B`` in either spelling."""
    return get_origin(tp) in (Union, types.UnionType)


def kind_of(cls: type) -> str | None:
    """The ``kind`` that selects ``cls`` in a union, or None."""
    tag = hints_of(cls).get("kind")
    return get_args(tag)[0] if get_origin(tag) is Literal else None


def members(tp: Any) -> tuple[type, ...]:
    """The config dataclasses that ``tp`` admits: one, several for a union, or none."""
    if get_origin(tp) is Annotated:
        return members(get_args(tp)[0])
    if is_union(tp):
        return tuple(cls for arg in get_args(tp) for cls in members(arg))
    return (tp,) if dataclasses.is_dataclass(tp) else ()


def pick_member(tp: Any, value: Any) -> type | None:
    """The dataclass that the mapping ``value`` means: by its ``kind``, else the first."""
    classes = members(tp)
    if not classes or not isinstance(value, dict):
        return None
    if "kind" not in value or kind_of(classes[0]) is None:
        return classes[0]
    return next((cls for cls in classes if kind_of(cls) == value["kind"]), None)


def item_type(tp: Any) -> Any | None:
    """``X`` of ``tuple[X, ...]`` or ``list[X]``, through an optional; else None."""
    for arg in get_args(tp) if is_union(tp) else (tp,):
        args = get_args(arg)
        if get_origin(arg) is list or (get_origin(arg) is tuple and args[-1] is Ellipsis):
            return args[0]
    return None


def child_type(tp: Any, key: str | int, value: Any = None) -> Any | None:
    """Type of the entry ``key`` of ``tp``; ``value`` is the mapping there, to pick by kind."""
    if isinstance(key, int):
        return item_type(tp)
    if get_origin(tp) is dict:
        return get_args(tp)[1]
    cls = pick_member(tp, value if isinstance(value, dict) else {})
    return hints_of(cls).get(key) if cls else None


def describe(tp: Any) -> str:
    """``tp`` in words, as in "expected a whole number"."""
    if get_origin(tp) is Annotated:
        return describe(get_args(tp)[0])
    if tp in _WORDS:
        return _WORDS[tp]
    args = get_args(tp)
    if get_origin(tp) is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args) if len(args) > 1 else repr(args[0])
    if is_union(tp):
        return _describe_union(tp)
    if get_origin(tp) is dict:
        return f"a mapping of names to {describe(args[1])}"
    if item_type(tp) is not None:
        return f"a list, each entry {describe(item_type(tp))}"
    if get_origin(tp) is tuple:
        if len(set(args)) == 1:
            return f"a list of {len(args)} {_PLURALS.get(args[0], describe(args[0]))}"
        return "a list of " + " and ".join(describe(arg) for arg in args)
    if dataclasses.is_dataclass(tp):
        names = list(hints_of(tp))
        more = ", …" if len(names) > SHOWN_KEYS else ""
        return f"a mapping with keys such as {', '.join(names[:SHOWN_KEYS])}{more}"
    return getattr(tp, "__name__", str(tp))


def _describe_union(tp: Any) -> str:
    """Words for ``A | B``: kinds, schedules, optionals."""
    args = [arg for arg in get_args(tp) if arg is not type(None)]
    if all(dataclasses.is_dataclass(arg) for arg in args) and len(args) > 1:
        return "a mapping with kind " + " or ".join(repr(kind_of(arg)) for arg in args)
    pairs = tuple[tuple[float, float], ...]
    words = ["[[fraction, value], ...]" if arg == pairs else describe(arg) for arg in args]
    if len(args) < len(get_args(tp)):
        words.append("null")
    return " or ".join(words)


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string literal under it in the source of ``cls`` (bases included)."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for node, following in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
                text = getattr(following.value, "value", None)
                if isinstance(text, str):
                    docs[node.target.id] = " ".join(text.split())
    return docs


def doc_of(cls: type) -> str:
    """First paragraph of the docstring of ``cls``, on one line."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
