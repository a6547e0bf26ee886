"""Errors of the image tools; see ``renderers.errors`` for the form of the messages."""

from __future__ import annotations

from renderers.errors import StudioError

__all__ = ["UnsafeWeights", "UnsupportedModel", "WeightsMissing", "first_line"]


class WeightsMissing(StudioError):
    """Model weights are not where they were looked for, or cannot be read."""

    exit_code = 3


class UnsafeWeights(WeightsMissing):
    """Model weights are stored as a Python pickle, which could run code when opened."""


class UnsupportedModel(StudioError):
    """A model folder is readable, but of a design that the prior does not implement."""

    exit_code = 2


def first_line(error: Exception) -> str:
    """What an error of another library says, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
