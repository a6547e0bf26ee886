"""Errors that end a run with one clear line, shared by every package.

Each message says what is wrong (name and value), what was expected, and what to do next.
``exit_code`` is what the ``studio`` command returns for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BackendMissing",
    "EmptyGeometry",
    "ShapeError",
    "StudioError",
    "check_shape",
    "is_out_of_memory",
]


class StudioError(Exception):
    """Base of all errors a user can cause or cure."""

    exit_code = 1


class BackendMissing(StudioError):
    """An optional backend was asked for and is not installed or not usable here."""

    exit_code = 3


class ShapeError(StudioError, ValueError):
    """A tensor at a public entry point has the wrong shape."""

    exit_code = 2


class EmptyGeometry(StudioError):
    """A field has no surface at the threshold; the message names its value range."""

    exit_code = 4


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or the CPU's memory is full; told without importing torch."""
    is_full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_full or "DefaultCPUAllocator" in str(error)


def check_shape(name: str, tensor: Tensor, pattern: str) -> None:
    """Compare ``tensor.shape`` with a pattern such as ``"B 4 4"`` or ``"N 3"``.

    Numbers must match; names match any size, equal names equal sizes.

    Raises:
        ShapeError: naming the tensor, its shape and the expected pattern.
    """
    wanted = pattern.split()
    sizes: dict[str, int] = {}
    fits = len(wanted) == tensor.ndim
    for want, size in zip(wanted, tensor.shape, strict=False):
        expected = int(want) if want.isdigit() else sizes.setdefault(want, size)
        fits = fits and size == expected
    if not fits:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}, expected [{', '.join(wanted)}]. "
            f"Reshape {name} before the call."
        )
