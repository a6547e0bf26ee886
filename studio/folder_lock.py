"""One process at a time in a folder, by a lock that the system drops when the process ends.

The lock is on an empty file ``.lock``, which stays behind and means nothing by itself: a killed
process leaves no folder locked, and a copied folder is free.

    with hold_run(run):
        Runner(scene, run).optimise()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from studio.errors import StorageError
from studio.run_folder import RunFolder, storage_errors

__all__ = ["hold_run", "only_one"]

NAME = ".lock"


@contextmanager
def only_one(folder: Path) -> Iterator[int | None]:
    """Hold a folder while working in it: two batches would continue the same runs at once.

    Gives the lock's file descriptor, None where there are no locks. A run that outlives a killed
    batch holds it, too, so nothing else begins to continue that run.

    Raises:
        StorageError: another process holds it, or it cannot be written.
    """
    busy = (
        f"Another process is working in {folder} - expected one at a time. "
        "Wait for it, or choose another --name."
    )
    with _held(folder, busy) as lock:
        yield lock


@contextmanager
def hold_run(run: RunFolder) -> Iterator[None]:
    """Hold a run while working on it: two trainers would delete each other's checkpoints.

    Raises:
        StorageError: another process holds it, or it cannot be written.
    """
    busy = (
        f"Another process is working on the run {run.path} - expected one at a time. "
        "Wait for it, or end it first."
    )
    with _held(run.path, busy):
        yield


@contextmanager
def _held(folder: Path, busy: str) -> Iterator[int | None]:
    """Hold the lock of a folder, or refuse with ``busy``."""
    with storage_errors(folder, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / NAME, "w")  # noqa: SIM115 - held open
    with file:
        try:
            is_held = _lock(file)
        except BlockingIOError as error:
            raise StorageError(busy) from error
        yield file.fileno() if is_held else None


def _lock(file: IO[str]) -> bool:
    """Lock a file; False where there are no locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have none
        return False
    return True
