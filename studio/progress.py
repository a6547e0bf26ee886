"""Progress on stderr: a rich bar on a terminal, else a plain line each tenth of the way."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

__all__ = [
    "BarProgress",
    "LineProgress",
    "Progress",
    "format_seconds",
    "logged_to",
    "make_progress",
    "say",
]


_LOG = logging.getLogger("studio.progress")
_LOG.propagate = False
_LOG.setLevel(logging.INFO)
_LOG.addHandler(logging.NullHandler())


def say(text: str) -> None:
    """One line on stderr, where everything goes that is not a result, and into the run's log."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    _LOG.info(text)


class _LogFile(logging.FileHandler):
    """A log that a run can do without: a full disk costs its lines, and not the run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, if the file can be opened."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Print no traceback about a line that could not be written."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        """Close the file; lines that a full disk did not take are lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Also append what is said to ``path``, each line with its time."""
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _LOG.addHandler(handler)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        handler.close()


def format_seconds(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    whole = max(int(seconds + 0.5), 0)
    hours, minutes = divmod(whole // 60, 60)
    clock = f"{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
    return f"{hours}:{clock}" if hours else clock


@runtime_checkable
class Progress(Protocol):
    """What the runner tells about its steps."""

    def update(self, done: int, stage: str, values: Mapping[str, float]) -> None:
        """``done`` steps are done, the last one in ``stage``; ``values`` are worth showing."""

    def leave_out(self, seconds: float) -> None:
        """So many seconds in all went into something else than steps."""

    def close(self) -> None:
        """Stop showing."""


class _Clock:
    """Rate and remaining time from the steps done in this process."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.first, self.start = total, done, time.monotonic()
        self.left_out = 0.0

    def rate(self, done: int) -> float:
        """Steps a second since the start."""
        seconds = time.monotonic() - self.start - self.left_out
        return (done - self.first) / max(seconds, 1e-9)

    def eta(self, done: int) -> str:
        """Time that is left."""
        rate = self.rate(done)
        return format_seconds((self.total - done) / rate) if rate > 0 else "?"


def _shown(values: Mapping[str, float]) -> str:
    """`name value` pairs, short."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


class LineProgress:
    """A plain line at every tenth of the way, for logs and CI."""

    def __init__(self, total: int, done: int, write: Callable[[str], None] = say) -> None:
        self.clock, self.write = _Clock(total, done), write
        self.tenth = 10 * done // max(total, 1)

    def update(self, done: int, stage: str, values: Mapping[str, float]) -> None:
        """Write a line when another tenth is done."""
        tenth = 10 * done // max(self.clock.total, 1)
        if tenth <= self.tenth:
            return
        self.tenth = tenth
        self.write(
            f"{stage} {done}/{self.clock.total} ({10 * tenth} %)  "
            f"{self.clock.rate(done):.2f} it/s  ETA {self.clock.eta(done)}  {_shown(values)}"
        )

    def leave_out(self, seconds: float) -> None:
        """Rate and time left are those of steps."""
        self.clock.left_out = seconds

    def close(self) -> None:
        """Nothing to clean up."""


class BarProgress:
    """A rich progress bar that stays on one line."""

    def __init__(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.clock = _Clock(total, done)
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[values]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self.task = self.bar.add_task("", total=total, completed=done, rate="", values="")
        self.bar.start()

    def update(self, done: int, stage: str, values: Mapping[str, float]) -> None:
        """Move the bar."""
        rate = f"{self.clock.rate(done):.2f} it/s ETA {self.clock.eta(done)}"
        self.bar.update(
            self.task, description=stage, completed=done, rate=rate, values=_shown(values)
        )

    def leave_out(self, seconds: float) -> None:
        """Rate and time left are those of steps."""
        self.clock.left_out = seconds

    def close(self) -> None:
        """Leave the finished bar on the screen."""
        self.bar.stop()


def make_progress(total: int, done: int) -> Progress:
    """A bar on a terminal, lines elsewhere."""
    if sys.stderr.isatty():
        return BarProgress(total, done)
    return LineProgress(total, done)
