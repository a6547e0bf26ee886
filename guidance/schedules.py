"""Numbers that change over a stage: a constant, or straight lines between points.

A schedule is a number or a tuple of ``(fraction of the stage, value)`` points. Before the first
point the first value holds, after the last point the last one. Two points at the same fraction
make a jump, and the later value holds from there on.

    value_at(0.5, 0.3)                        # 0.5
    value_at(((0.0, 0.98), (1.0, 0.5)), 0.5)  # 0.74
"""

from __future__ import annotations

import math

__all__ = ["ScheduleValue", "check_order", "check_schedule", "value_at"]

ScheduleValue = float | tuple[tuple[float, float], ...]


def value_at(schedule: ScheduleValue, fraction: float) -> float:
    """The schedule's value at ``fraction`` of the stage, 0 at its start and 1 at its end.

    Raises:
        ValueError: if ``fraction`` is not a number or the schedule has no points.
    """
    if isinstance(schedule, int | float):
        return float(schedule)
    if math.isnan(fraction):
        raise ValueError("fraction is NaN, expected a number from 0 to 1.")
    if not schedule:
        raise ValueError("a schedule has no points, expected a number or [[fraction, value], ...].")
    start, value = schedule[0]
    for end, target in schedule:
        if fraction < end:
            if end == start:
                return float(value)
            return float(value + (target - value) * (fraction - start) / (end - start))
        start, value = end, target
    return float(value)


def check_schedule(
    name: str, schedule: ScheduleValue, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Refuse a schedule that is malformed or leaves the range from ``low`` to ``high``.

    Raises:
        ValueError: naming the schedule, the offending number and the remedy.
    """
    is_number = isinstance(schedule, int | float)
    points = ((0.0, float(schedule)),) if is_number else tuple(schedule)
    if not points:
        raise ValueError(f"{name} is empty. Give a number or [[fraction, value], ...].")
    if any(len(point) != 2 for point in points):
        raise ValueError(f"{name} is {schedule}. Each point must be [fraction, value].")
    fractions = [point[0] for point in points]
    if not all(0.0 <= fraction <= 1.0 for fraction in fractions):
        raise ValueError(f"{name} has fractions {fractions}. Keep them from 0 to 1.")
    if fractions != sorted(fractions):
        raise ValueError(f"{name} has fractions {fractions}. Put them in increasing order.")
    for _, value in points:
        if not low <= value <= high:
            raise ValueError(f"{name} has the value {value}. Keep it from {low} to {high}.")


def check_order(low_name: str, low: ScheduleValue, high_name: str, high: ScheduleValue) -> None:
    """Refuse two schedules of which the first rises above the second somewhere in a stage.

    Both are straight between their points, so that they cross, if at all, by the next point of one
    of them; at a jump, the values before it count too.

    Raises:
        ValueError: naming both, the place and their values there.
    """
    points = [0.0, 1.0]
    for schedule in (low, high):
        points += [] if isinstance(schedule, int | float) else [point[0] for point in schedule]
    for fraction in sorted({*points, *(math.nextafter(point, 0.0) for point in points)}):
        below, above = value_at(low, fraction), value_at(high, fraction)
        if below > above:
            raise ValueError(
                f"{low_name} is above {high_name} at {fraction:.3f} of the stage ({below:.3f} > "
                f"{above:.3f}). Keep {low_name} at or below {high_name} over the whole stage."
            )
