"""Threads spin on an idle machine and sleep on a busy one, unless the user says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio import waiting
from studio.waiting import idle_share, settle_waiting

QUOTA_FILES = ("QUOTA", "OLD_QUOTA", "OLD_PERIOD")
EARLIER = "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2 3\n"


@pytest.fixture(autouse=True)
def quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the files of a container's quota are looked for; none is there, whatever runs this."""
    for name in QUOTA_FILES:
        monkeypatch.setattr(waiting, name, tmp_path / name)
    return tmp_path


def later(busy: int, idle: int, disk: int = 0) -> str:
    """A second reading, so many ticks on."""
    return f"cpu  {100 + busy} 0 50 {800 + idle} {50 + disk} 0 0 0 0 0\ncpu0 4 5 6\n"


@pytest.mark.parametrize(
    ("busy", "idle", "disk", "share"),
    [(10, 30, 0, 0.75), (0, 40, 0, 1.0), (40, 0, 0, 0.0), (10, 20, 10, 0.75), (0, 0, 0, 0.0)],
)
def test_the_idle_share_is_that_of_the_time_between(busy: int, idle: int, disk: int, share: float):
    assert idle_share(EARLIER, later(busy, idle, disk)) == pytest.approx(share)


@pytest.mark.parametrize(("busy", "spins"), [(1, True), (20, False)])
def test_threads_spin_only_on_an_idle_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, busy: int, spins: bool
):
    readings = iter([EARLIER, later(busy, 40 - busy)])
    stat = tmp_path / "stat"

    def pass_time(seconds: float) -> None:
        assert seconds <= 0.5, "a start that nobody notices"
        stat.write_text(next(readings))

    stat.write_text(next(readings))
    monkeypatch.setattr(waiting, "STAT", stat)
    monkeypatch.setattr(waiting.time, "sleep", pass_time)
    environment: dict[str, str] = {}
    settle_waiting(environment)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert ("GOMP_SPINCOUNT" in environment) is spins


def test_where_nothing_can_be_told_threads_sleep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(waiting, "STAT", tmp_path / "missing")
    environment: dict[str, str] = {}
    settle_waiting(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"QUOTA": "max 100000\n"}, 8),
        ({"QUOTA": "200000 100000\n"}, 2),
        ({"QUOTA": "150000 100000\n"}, 2),
        ({"QUOTA": "1600000 100000\n"}, 8),
        ({"OLD_QUOTA": "300000\n", "OLD_PERIOD": "100000\n"}, 3),
        ({"OLD_QUOTA": "-1\n", "OLD_PERIOD": "100000\n"}, 8),
        ({}, 8),
    ],
)
def test_a_container_s_quota_of_time_counts_as_cores(monkeypatch, quota, files, cores):
    for name, text in files.items():
        (quota / name).write_text(text)
    monkeypatch.setattr(waiting.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert waiting.granted_cores() == cores
    environment = {"OMP_NUM_THREADS": "5"}
    monkeypatch.setattr(waiting, "_watched_idle_share", lambda: 1.0)
    settle_waiting(environment)
    assert environment["OMP_NUM_THREADS"] == "5", "the user's own"
    assert environment.get("NUMBA_NUM_THREADS") == (str(cores) if cores < 8 else None)
    assert ("GOMP_SPINCOUNT" in environment) is (cores == 8)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_has_set_is_left_alone(name: str):
    environment = {name: "ACTIVE"}
    settle_waiting(environment)
    assert environment == {name: "ACTIVE"}
