"""Which step of a sampler a timestep belongs to.

A prior is called with timesteps and nothing else, so a tool whose effect depends on the step must
find it there. A tool that counts calls would lose count where a step is repeated or left out.

    clock = StepClock([step.t for step in ddim_steps(prior, 50)])
    clock.step(t)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from renderers.errors import ShapeError

__all__ = ["StepClock"]


class StepClock:
    """The steps of one sampler."""

    def __init__(self, timesteps: Sequence[int]) -> None:
        """Timesteps of the steps in order, which is falling."""
        self.timesteps = tuple(timesteps)
        self._rising = self.timesteps[::-1]

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(self, t: Int[Tensor, " b"]) -> int:
        """The step with this timestep, or the earliest one with less noise than it, or the last.

        Raises:
            ShapeError: if the rows are at different steps.
        """
        steps = {len(self) - 1 - self._place(value) for value in set(t.tolist())}
        if len(steps) != 1:
            raise ShapeError(
                f"t holds {sorted(set(t.tolist()))}, which are different steps of the sampler - "
                "expected one step for all rows. Call once for each timestep."
            )
        return steps.pop()

    def _place(self, t: int) -> int:
        place = bisect_left(self._rising, t)
        is_exact = place < len(self) and self._rising[place] == t
        return place if is_exact else max(place - 1, 0)
