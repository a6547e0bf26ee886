"""How threads wait for their next piece of work; decided before torch is imported.

A step of a small model is thousands of short parallel loops. A thread that sleeps in between wakes
late, one that spins burns a core that another process needs. On two idle cores the demo made 2.2
steps a second with sleeping threads, 3.6 to 4.8 with threads that spin for some ten microseconds
first, and 3.2 with one thread; beside one busy process 2.2, 1.1 and 2.5. So threads spin when the
machine is idle at the start, and sleep otherwise. Results do not depend on it.

In a container that is granted fewer cores than the machine has (a quota of time, which the list of
cores does not tell), one thread is started for each core granted and none spins: with one for each
core of the machine, most of the quota is spent on waiting for each other.

Spinning for a bounded time is a setting of libgomp, which PyTorch for Linux comes with; on other
systems threads sleep.

    settle_waiting()
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["THREADS", "granted_cores", "idle_share", "listed_cores", "settle_waiting"]

POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
FEW_SPINS = "10000"
IDLE = 0.9
"""Least idle share of all cores at which threads may spin."""
WATCH_S = 0.2
STAT = Path("/proc/stat")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
OLD_QUOTA = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
OLD_PERIOD = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Variables that tell libraries how many threads to start."""


def settle_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how threads of this process will wait, unless the user has."""
    granted = granted_cores()
    has_less = granted < len(listed_cores())
    if has_less:
        for name in THREADS:
            environment.setdefault(name, str(granted))
    if POLICY in environment or SPINS in environment:
        return
    environment[POLICY] = "PASSIVE"
    if not has_less and _watched_idle_share() >= IDLE:
        environment[SPINS] = FEW_SPINS


def granted_cores() -> int:
    """Cores that this process may use: those listed for it, or fewer if its time has a quota."""
    listed = len(listed_cores())
    try:
        if QUOTA.is_file():
            quota, period = QUOTA.read_text().split()
        else:
            quota, period = OLD_QUOTA.read_text(), OLD_PERIOD.read_text()
        granted = math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number: there is no quota
        return listed
    return min(listed, granted) if granted > 0 else listed  # -1: none, in the older form


def listed_cores() -> list[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not every system tells
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def idle_share(before: str, after: str) -> float:
    """Share of all cores' time that was idle between two readings of ``/proc/stat``."""
    first, last = ([int(n) for n in text.split("\n", 1)[0].split()[1:]] for text in (before, after))
    spent = [b - a for a, b in zip(first, last)]
    idle = sum(spent[3:5])  # idle, and waiting for a disk
    return idle / sum(spent) if sum(spent) else 0.0


def _watched_idle_share() -> float:
    """Idle share of a short while; 0 where it cannot be told."""
    try:
        before = STAT.read_text()
        time.sleep(WATCH_S)
        return idle_share(before, STAT.read_text())
    except (OSError, ValueError, IndexError):
        return 0.0
