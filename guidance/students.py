"""How much of the subject a prior with consistency guidance adds, over a stage (DCO, w_con).

A scene's prior gives each subject a weight, ``consistency_scale``; a stage's rule multiplies all of
them by a schedule, so that the subject can come in once the prior has made the shape.
"""

from __future__ import annotations

from guidance.schedules import ScheduleValue, value_at
from image_tools.diffusion.protocol import NoisePrior
from image_tools.personalization.consistency import consistency_of
from renderers.errors import StudioError

__all__ = ["weigh_students"]


def weigh_students(prior: NoisePrior, schedule: ScheduleValue, fraction: float) -> None:
    """Set the factor of all students' weights at ``fraction`` of the stage.

    Raises:
        StudioError: the schedule asks for something, and the prior has no students.
    """
    consistency = consistency_of(prior)
    if consistency is not None:
        consistency.strength = value_at(schedule, fraction)
    elif schedule != 1.0:
        raise StudioError(
            f"guidance.consistency is {schedule} with a prior without consistency guidance. "
            "Expected prior: {kind: personalized, guidance: consistency, subjects: [...]}, or "
            "leave it out."
        )
