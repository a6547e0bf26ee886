"""What a run costs, over all processes that worked on it: seconds add up, memory is the highest.

info |= costs_with(info, seconds={"load": 3.0}, peak_bytes=2**30, stage_bytes={})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["costs_with"]


def costs_with(
    info: Mapping[str, Any],
    *,
    seconds: Mapping[str, float],
    peak_bytes: int,
    stage_bytes: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Entries of `run.json` with what one more process cost.

    Args:
        info: `run.json` as it is.
        seconds: time by name.
        peak_bytes: highest use of memory.
        stage_bytes: the same by stage and kind; nothing where stages cannot be told apart.
    """
    before, stages = info.get("seconds", {}), info.get("stage_memory_bytes", {})
    costs: dict[str, Any] = {
        "seconds": {
            name: round(before.get(name, 0.0) + spent, 3) for name, spent in seconds.items()
        },
        "peak_memory_bytes": max(info.get("peak_memory_bytes") or 0, peak_bytes),
    }
    if stage_bytes:
        highest = {name: _highest(stages.get(name, {}), now) for name, now in stage_bytes.items()}
        costs["stage_memory_bytes"] = {**stages, **highest}
    return costs


def _highest(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """The higher one of each kind of memory."""
    return {kind: max(before.get(kind, 0), count) for kind, count in now.items()}
