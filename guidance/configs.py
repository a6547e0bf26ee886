"""Configuration of the guidance rules: frozen dataclasses, importable without torch.

Guidance scales are those of ``eps_u + s (eps_c - eps_u)``. Values published for
``eps_c + s (eps_c - eps_u)`` (DreamFusion, threestudio's SDS) are one smaller than ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guidance.schedules import ScheduleValue, check_order, check_schedule

__all__ = [
    "MAX_RELATED",
    "AnnealedTimestepsConfig",
    "DirectionalPromptsConfig",
    "InterpolatedPromptsConfig",
    "PerpNegPromptsConfig",
    "PlainPromptsConfig",
    "RelationPromptsConfig",
    "RelationWordsConfig",
    "SDSConfig",
    "TimestepsConfig",
    "UniformTimestepsConfig",
    "ViewPromptsConfig",
    "ViewWordsConfig",
    "Weighting",
]

Weighting = Literal["sds", "uniform", "fantasia3d"]


@dataclass(frozen=True)
class ViewWordsConfig:
    """Words that tell the prior from where the object is seen."""

    side: str = "{prompt}, side view"
    """Prompt of a side view; {prompt} stands for the scene's prompt."""
    front: str = "{prompt}, front view"
    """Prompt of a front view."""
    back: str = "{prompt}, back view"
    """Prompt of a back view."""
    overhead: str = "{prompt}, overhead view"
    """Prompt of a view from above."""
    left: str | None = None
    """Prompt of its left side, azimuth 90; empty for the side's. A prior that knows left from right
    is not asked for both at once, which draws a head at either end."""
    right: str | None = None
    """Prompt of its right side, azimuth -90; empty for the side's."""

    def __post_init__(self) -> None:
        """Refuse a template without its place for the prompt."""
        for view in ("side", "front", "back", "overhead", "left", "right"):
            template = getattr(self, view)
            if template is not None and "{prompt}" not in template:
                raise ValueError(f"words.{view} is '{template}'. Put {{prompt}} into it.")


@dataclass(frozen=True)
class PlainPromptsConfig:
    """The same prompt for every view."""

    kind: Literal["plain"] = "plain"


@dataclass(frozen=True)
class DirectionalPromptsConfig:
    """One prompt per direction; later directions override: side, front, back, overhead."""

    kind: Literal["directional"] = "directional"
    front_deg: float = 45.0
    """The front prompt holds where |azimuth| is smaller than this, degrees."""
    back_deg: float = 45.0
    """The back prompt holds where |azimuth| is larger than 180 minus this, degrees."""
    overhead_deg: float = 60.0
    """The overhead prompt holds where the elevation is larger than this, degrees."""
    words: ViewWordsConfig = ViewWordsConfig()
    """Wording of the four directions."""


@dataclass(frozen=True)
class InterpolatedPromptsConfig:
    """Text embeddings interpolated by azimuth: front to side to back (stable-dreamfusion)."""

    kind: Literal["interpolated"] = "interpolated"
    overhead_deg: float = 60.0
    """The overhead prompt replaces the mix where the elevation is larger than this, degrees."""
    words: ViewWordsConfig = ViewWordsConfig()
    """Wording of the four directions."""


@dataclass(frozen=True)
class PerpNegPromptsConfig:
    """Perp-Neg (arXiv 2304.04968): interpolated prompts, and the other views as negatives.

    Each decay (a, b, c) gives the weight -(a exp(-b r) + c), with r from 0 to 1 the closeness to
    the view named first.
    """

    kind: Literal["perp_neg"] = "perp_neg"
    overhead_deg: float = 60.0
    """Above this elevation, degrees, the overhead prompt is used without negatives."""
    side_back: tuple[float, float, float] = (1.0, 0.5, -0.606)
    """Between side and back: decay of the weight of the negative 'side'."""
    side_back_front: tuple[float, float, float] = (1.0, 0.5, 0.967)
    """Between side and back: decay of the weight of the negative 'front'."""
    front_side: tuple[float, float, float] = (4.0, 0.5, -2.426)
    """Between front and side: decay of the weight of the negative 'front'."""
    side_front: tuple[float, float, float] = (4.0, 0.5, -2.426)
    """Between front and side: decay of the weight of the negative 'side', by 1 - r."""
    words: ViewWordsConfig = ViewWordsConfig()
    """Wording of the four directions."""


MAX_RELATED = 4
"""Objects with relations: more would be hundreds of prompts, and no denoiser keeps them apart."""


@dataclass(frozen=True)
class RelationWordsConfig:
    """Words between two objects, by where the camera sees the first one."""

    left: str = "left of"
    """The first is further left in the image."""
    right: str = "right of"
    """The first is further right in the image."""
    front: str = "in front of"
    """The first is nearer to the camera."""
    behind: str = "behind"
    """The first is farther from the camera."""
    above: str = "on top of"
    """The first is higher."""
    below: str = "under"
    """The first is lower."""

    def __post_init__(self) -> None:
        """Refuse empty words: two objects in a row would read as one."""
        for name, words in vars(self).items():
            if not words.strip():
                raise ValueError(f"words.{name} is empty. Give the words between two objects.")


@dataclass(frozen=True)
class RelationPromptsConfig:
    """The objects of the scene's layout, in its order, with the words for how they stand to each
    other as the camera sees it: what is left of the other from the front is right of it from behind
    (ours)."""

    kind: Literal["relations"] = "relations"
    template: str = "{objects}"
    """Prompt of a view; {objects} stands for the objects with the words between them."""
    words: RelationWordsConfig = RelationWordsConfig()
    """Words between two objects."""
    objects: DirectionalPromptsConfig = DirectionalPromptsConfig()
    """Prompts of one object alone, for guidance that shows it so."""

    def __post_init__(self) -> None:
        """Refuse a template without its place for the objects."""
        if "{objects}" not in self.template:
            raise ValueError(f"template is '{self.template}'. Put {{objects}} into it.")


ViewPromptsConfig = (
    PlainPromptsConfig
    | DirectionalPromptsConfig
    | InterpolatedPromptsConfig
    | PerpNegPromptsConfig
    | RelationPromptsConfig
)


@dataclass(frozen=True)
class UniformTimestepsConfig:
    """Timesteps drawn uniformly between two bounds that may move during the stage."""

    kind: Literal["uniform"] = "uniform"
    min_t: ScheduleValue = 0.02
    """Smallest timestep, as a fraction of the training length."""
    max_t: ScheduleValue = 0.98
    """Largest timestep, as a fraction of the training length."""
    share: Literal["view", "batch"] = "view"
    """Draw one timestep per view, or one for the whole batch."""

    def __post_init__(self) -> None:
        """Refuse bounds outside 0..1."""
        check_schedule("min_t", self.min_t, low=0.0, high=1.0)
        check_schedule("max_t", self.max_t, low=0.0, high=1.0)
        check_order("min_t", self.min_t, "max_t", self.max_t)


@dataclass(frozen=True)
class AnnealedTimestepsConfig:
    """A predetermined, falling timestep: start - (start - end) fraction^power."""

    kind: Literal["annealed"] = "annealed"
    start_t: float = 0.98
    """Timestep at the start of the stage, as a fraction of the training length."""
    end_t: float = 0.02
    """Timestep at the end of the stage, as a fraction of the training length."""
    power: float = 1.0
    """1 falls evenly (DreamFlow); 0.5 falls fast at first (HiFA, arXiv 2305.18766)."""

    def __post_init__(self) -> None:
        """Refuse a schedule that rises, leaves 0..1 or has no slope."""
        if not 0.0 <= self.end_t <= self.start_t <= 1.0:
            raise ValueError(
                f"start_t is {self.start_t} and end_t is {self.end_t}. "
                "Keep 0 <= end_t <= start_t <= 1."
            )
        if self.power <= 0.0:
            raise ValueError(f"power is {self.power}. Give a number above 0.")


TimestepsConfig = UniformTimestepsConfig | AnnealedTimestepsConfig


@dataclass(frozen=True)
class SDSConfig:
    """Score distillation sampling (DreamFusion, arXiv 2209.14988, Eq. 3)."""

    kind: Literal["sds"] = "sds"
    guidance_scale: ScheduleValue = 101.0
    """s in eps_u + s (eps_c - eps_u). DreamFusion's and threestudio's 100 is 101 here."""
    guidance_rescale: float = 0.0
    """Share phi of the standard-deviation rescale (arXiv 2305.08891, Eq. 16); 0 = none."""
    weighting: Weighting = "sds"
    """w(t): sds = 1 - alpha_bar, uniform = 1, fantasia3d = sqrt(alpha_bar) (1 - alpha_bar)."""
    timesteps: TimestepsConfig = UniformTimestepsConfig()
    """How timesteps are chosen."""
    grad_clip: ScheduleValue | None = None
    """Largest absolute value of each entry of the latent gradient; empty does not clip. One that
    rises over the stage is score debiasing against Janus faces (D-SDS, arXiv 2303.15413): its
    authors publish [[0, 0.5], [1, 2]] for DreamFusion with a pixel model, and threestudio proposes
    [[0, 2], [0.1, 8]]."""
    consistency: ScheduleValue = 1.0
    """Factor of the subjects' consistency_scale (w_con), for a prior with consistency guidance;
    [[0, 0.3], [0.5, 1]] lets the subject in once the shape stands."""

    def __post_init__(self) -> None:
        """Refuse a scale, a clip value or a factor below 0."""
        check_schedule("guidance_scale", self.guidance_scale, low=0.0)
        check_schedule("consistency", self.consistency, low=0.0)
        if self.grad_clip is not None:
            check_schedule("grad_clip", self.grad_clip, low=0.0)
