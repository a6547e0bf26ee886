"""What can go wrong with the object pack, each with what to do about it."""

from __future__ import annotations

from renderers.errors import StudioError

__all__ = ["BrokenSource", "UnknownObject"]


class BrokenSource(StudioError):
    """The Debian package, a library in it or a model file is not what the reader expects."""

    exit_code = 3


class UnknownObject(StudioError, KeyError):
    """A name that the pack does not hold."""

    exit_code = 2

    def __str__(self) -> str:
        """The message as it is; a KeyError would put it in quotes."""
        return str(self.args[0])
