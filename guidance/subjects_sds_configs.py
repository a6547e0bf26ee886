"""Configuration of score distillation with subjects: a frozen dataclass, free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from guidance.configs import SDSConfig
from image_tools.editing.phrases import phrase_starts
from image_tools.personalization.ms_diffusion_configs import MSDiffusionConfig

__all__ = ["SubjectsSDSConfig"]


@dataclass(frozen=True)
class SubjectsSDSConfig:
    """Score distillation in which objects of the scene's layout look like subjects of your own
    (MS-Diffusion, arXiv 2406.07209, in 3D). Without a layout it is plain SDS."""

    tool: MSDiffusionConfig
    """Weights and subjects. Each stands in the object of the layout whose prompt has its phrase;
    boxes and layout of its own are not used."""
    kind: Literal["subjects_sds"] = "subjects_sds"
    """Tag of this choice."""
    least_area: float = 0.01
    """Share of the image below which an object counts as hidden, and its subject is left out."""
    sds: SDSConfig = field(default_factory=SDSConfig)
    """The rule around it."""

    def __post_init__(self) -> None:
        """Refuse what is no share, and a layout in the image."""
        if not 0.0 <= self.least_area < 1.0:
            raise ValueError(f"least_area is {self.least_area} - expected from 0 to below 1.")
        if self.tool.layout is not None:
            raise ValueError(
                "tool.layout finds places while a sampler draws - expected none: places come from "
                "the scene's layout."
            )

    @property
    def is_on(self) -> bool:
        """Whether any subject counts."""
        scales = [one.scale for one in self.tool.subjects]
        return any(self.tool.scale if scale is None else scale for scale in scales)

    def objects_in(self, prompts: Sequence[str]) -> list[int | None]:
        """The object of a layout that each subject stands in, each object at most once.

        Args:
            prompts: of the objects.

        Returns:
            for each subject a place in ``prompts``, None where no prompt that is left has its
            phrase.
        """
        found: list[int | None] = []
        for subject in self.tool.subjects:
            fits = (
                k for k, one in enumerate(prompts) if phrase_starts(one.split(), subject.phrase)
            )
            found.append(next((k for k in fits if k not in found), None))
        return found
