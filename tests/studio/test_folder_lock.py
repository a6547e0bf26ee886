"""One process at a time in a folder, and nothing of it that outlasts the process."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys

import pytest

from studio.errors import StorageError
from studio.folder_lock import hold_run, only_one
from studio.run_folder import RunFolder, create_run


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run folder."""
    return create_run(tmp_path, prompt="duck", method="demo", seed=0, info={})


def test_a_folder_is_worked_in_by_one_process(tmp_path):
    with only_one(tmp_path), pytest.raises(StorageError, match="one at a time"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_run_that_outlives_its_batch_still_holds_the_folder(tmp_path):
    wait = [sys.executable, "-c", "input()"]
    with only_one(tmp_path) as lock:
        child = subprocess.Popen(wait, stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(StorageError, match="one at a time"), only_one(tmp_path):
        pass
    child.communicate(b"\n")
    with only_one(tmp_path):
        pass


def test_a_run_is_held_until_the_work_on_it_ends(run):
    with hold_run(run):
        with pytest.raises(StorageError) as refused, hold_run(run):
            pass
        assert str(refused.value) == (
            f"Another process is working on the run {run.path} - expected one at a time. "
            "Wait for it, or end it first."
        )
    with pytest.raises(ZeroDivisionError), hold_run(run):
        raise ZeroDivisionError
    with hold_run(run):
        pass


def test_a_copy_of_a_held_run_is_free(run, tmp_path):
    with hold_run(run):
        copy = RunFolder(shutil.copytree(run.path, tmp_path / "elsewhere" / "duck" / "copy"))
        with hold_run(copy):
            pass


def test_a_disk_without_locks_is_worked_on_without_one(run, monkeypatch):
    """Some network file systems have none; that is no reason to refuse a run."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold_run(run), hold_run(run):
        pass
    with only_one(run.path) as lock:
        assert lock is None
