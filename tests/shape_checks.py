"""The type checker of ``make test-shapes``: every tensor that goes in or out has its stated shape.

Only annotations of tensors are checked, by beartype and jaxtyping together; the rest (protocols,
names imported for types alone) is left out, because it cannot be checked while a program runs.

    pytest --jaxtyping-packages=guidance,renderers,tests.shape_checks.check_shapes
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray

__all__ = ["check_shapes"]


def check_shapes(function: Callable) -> Callable:
    """``function`` with checks of its tensors; itself when it has none."""
    hints = {name: _resolved(hint, function) for name, hint in function.__annotations__.items()}
    function.__annotations__ = {name: hint for name, hint in hints.items() if _is_of_tensors(hint)}
    return beartype(function) if function.__annotations__ else function


def _resolved(hint: Any, function: Callable) -> Any:
    """What an annotation means; None for names that are imported for types alone."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)  # as inspect.get_annotations does
    except NameError:
        return None


def _is_of_tensors(hint: Any) -> bool:
    """Whether it is a tensor of some shape, an optional one, or a tuple or list of them."""
    if get_origin(hint) in (Union, types.UnionType, tuple, list):
        inner = [part for part in get_args(hint) if part not in (types.NoneType, Ellipsis)]
        return bool(inner) and all(_is_of_tensors(part) for part in inner)
    return isinstance(hint, type) and issubclass(hint, AbstractArray)
