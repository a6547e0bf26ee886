"""``steps=N``: a number of steps shared among the stages of a scene.

They add up to N, and no stage is left without one.

    stages = [{"steps": 300}, {"steps": 100}]
    set_total_steps(stages, 11)  # 8 and 3
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.errors import ConfigError

__all__ = ["set_total_steps", "shares_of"]


def set_total_steps(stages: list[dict[str, Any]], total: Any) -> None:
    """Share ``total`` steps among the stages in proportion to what they had.

    Raises:
        ConfigError: it is no number of steps, or not one for each stage; or the stages have none.
    """
    if not isinstance(total, int) or isinstance(total, bool):
        raise ConfigError(f"steps: got {total!r} - expected a whole number.")
    counts = [stage.get("steps") if isinstance(stage, dict) else None for stage in stages]
    if not all(isinstance(count, int) for count in counts) or sum(counts) <= 0:
        raise ConfigError("steps: the stages have no steps to share; set stages.0.steps instead.")
    if total < len(stages):
        each = ", one for each stage" if len(stages) > 1 else ""
        raise ConfigError(f"steps: is {total} - expected at least {len(stages)}{each}.")
    for stage, share in zip(stages, shares_of(total, counts), strict=True):
        stage["steps"] = share


def shares_of(total: int, counts: Sequence[int]) -> list[int]:
    """Whole numbers that add up to ``total``, as nearly in proportion to ``counts`` as they can.

    The method of largest remainders: what rounding down leaves goes to those that lack most. None
    is below 1, for which there must be as many as ``counts``.
    """
    whole = sum(counts)
    shares = [max(total * count // whole, 1) for count in counts]

    def lack(k: int) -> int:
        """How far a share is below its exact value, in parts of ``whole``."""
        return total * counts[k] - shares[k] * whole

    while sum(shares) < total:
        shares[max(range(len(shares)), key=lack)] += 1
    while sum(shares) > total:  # a 1 stands where 0 would have been right
        shares[min((k for k, share in enumerate(shares) if share > 1), key=lack)] -= 1
    return shares
