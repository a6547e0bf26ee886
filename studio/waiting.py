"""How threads wait for their next piece of work; decided before torch is imported.

A step of a small model is thousands of short parallel loops. A thread that sleeps in between wakes
late, one that spins burns a core that another process needs. On two idle cores the demo made 2.2
steps a second with sleeping threads, 3.6 to 4.8 with threads that spin for some ten microseconds
first, and 3.2 with one thread; beside one busy process 2.2, 1.1 and 2.5. So threads spin when the
machine is idle at the start, and sleep otherwise. Results do not depend on it.

Spinning for a bounded time is a setting of libgomp, which PyTorch for Linux comes with; on other
systems threads sleep.

    settle_waiting()
"""

from __future__ import annotations

import os
import time
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["idle_share", "settle_waiting"]

POLICY, SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
FEW_SPINS = "10000"
IDLE = 0.9
"""Least idle share of all cores at which threads may spin."""
WATCH_S = 0.2
STAT = Path("/proc/stat")


def settle_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set how threads of this process will wait, unless the user has."""
    if POLICY in environment or SPINS in environment:
        return
    environment[POLICY] = "PASSIVE"
    if _watched_idle_share() >= IDLE:
        environment[SPINS] = FEW_SPINS


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
