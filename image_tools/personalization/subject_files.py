"""The files of what a prior was taught; they are looked for, and nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from image_tools.errors import WeightsMissing
from image_tools.personalization.personalized_configs import SubjectConfig

__all__ = ["subject_files"]


def subject_files(subjects: Sequence[SubjectConfig]) -> list[Path]:
    """LoRAs, embeddings and weights of subjects.

    Raises:
        WeightsMissing: one is not there.
    """
    wanted = []
    for subject in subjects:
        wanted += [(use.path, "LoRA") for use in subject.loras]
        wanted += [(use.path, "embedding") for use in subject.embeddings]
        wanted += [(subject.weights, "DreamBooth weights")] if subject.weights else []
    found = []
    for name, role in wanted:
        path = Path(name).expanduser()
        if not path.exists():
            raise WeightsMissing(
                f"The {role} of a personalized prior is missing: no file '{path}'. Expected a "
                "result of studio personalize or a downloaded file; correct prior.subjects."
            )
        found.append(path)
    return found
