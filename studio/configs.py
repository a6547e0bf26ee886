"""The scene file as frozen dataclasses; ``studio explain`` prints the text under each field.

A scene is a prompt, a prior, and stages; each stage ties a field, a renderer and a guidance rule
together. Importable without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as setting  # a stage has a field of its own, the 3D one
from typing import Literal

from guidance.configs import (
    DirectionalPromptsConfig,
    PerpNegPromptsConfig,
    PlainPromptsConfig,
    ViewPromptsConfig,
)
from guidance.debiasing_configs import DebiasConfig
from guidance.layout_multiview_configs import OF_SETS
from guidance.rule_configs import GuidanceConfig
from image_tools.configs import PocketPriorConfig, PriorConfig
from renderers.configs import FieldConfig
from renderers.mesh_configs import GridTetsConfig, MeshFileConfig
from studio.edit_configs import EditConfig
from studio.export.configs import ExportConfig
from studio.layout_configs import ObjectBoxConfig, layout_problems, with_boxes
from studio.prompt_rules import prompt_problems, seed_problems
from studio.stage_configs import (
    AdamConfig,
    AdamWConfig,
    LossesConfig,
    OptimizerConfig,
    PreviousFieldConfig,
    RendererConfig,
    StageConfig,
    StageFieldConfig,
)
from studio.stage_order import stage_problems
from studio.subject.configs import DreamBooth3DConfig
from studio.subject.rules import is_consistent, subject_problems

__all__ = [
    "AdamConfig",
    "AdamWConfig",
    "GuidanceConfig",
    "LossesConfig",
    "OptimizerConfig",
    "PreviousFieldConfig",
    "RendererConfig",
    "SavingConfig",
    "SceneConfig",
    "StageConfig",
    "StageFieldConfig",
]


@dataclass(frozen=True)
class SavingConfig:
    """What a run writes while it goes on. None of it changes the result."""

    checkpoint_every: int = 100
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""
    keep_checkpoints: int = 2
    """Checkpoints kept on disk, at least 2 so that a damaged one has a predecessor."""
    preview_every: int = 100
    """Steps between two preview sheets; 0 writes none."""
    preview_size: int = 96
    """Side of a preview image, pixels."""

    def __post_init__(self) -> None:
        """Refuse intervals that make no sense."""
        for name, low in (("checkpoint_every", 1), ("keep_checkpoints", 2), ("preview_every", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)} - expected at least {low}.")
        if not 8 <= self.preview_size <= 2048:
            raise ValueError(f"preview_size is {self.preview_size} - expected 8 to 2048 pixels.")


@dataclass(frozen=True)
class SceneConfig:
    """A whole scene: what to make, with which prior, in which stages."""

    stages: tuple[StageConfig, ...]
    """Optimisations, one after the other."""
    task: Literal["text_to_3d", "dreambooth3d"] = "text_to_3d"
    """What the scene is for: anything from words, or a subject of your own from photos."""
    prompt: str = ""
    """What to make, in words; {} stands for the subject, if the scene has one."""
    negative_prompt: str = ""
    """What it should not look like; the unconditional prompt when empty."""
    seed: int = 0
    """Seed of every random draw; the same seed on the same machine gives the same bits."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    prior: PriorConfig = setting(default_factory=PocketPriorConfig)
    """2D diffusion model that judges the renders, where a stage has none of its own."""
    subject: DreamBooth3DConfig | None = None
    """Your own subject, for task dreambooth3d."""
    edit: EditConfig | None = None
    """A finished run to start from and to edit; empty to start from nothing."""
    layout: tuple[ObjectBoxConfig, ...] = ()
    """Objects with prompts and places of their own, for guidance that knows them."""
    view_prompts: ViewPromptsConfig = setting(default_factory=DirectionalPromptsConfig)
    """How the prompt depends on the view."""
    debias: DebiasConfig | None = None
    """Drops words that speak against a view from that view's prompt; empty keeps all words."""
    export: ExportConfig = setting(default_factory=ExportConfig)
    """Asset files written at the end."""
    saving: SavingConfig = setting(default_factory=SavingConfig)
    """Checkpoints and previews."""

    def field_of(self, index: int) -> FieldConfig | GridTetsConfig | MeshFileConfig:
        """Settings of what stage ``index`` optimises: a field or a mesh."""
        while isinstance(self.stages[index].field, PreviousFieldConfig):
            if index == 0:
                return self.edit.shape
            index -= 1
        return with_boxes(self.stages[index].field, self.layout)

    @property
    def color_field(self) -> FieldConfig | MeshFileConfig:
        """Settings of the field that holds the colours in all stages."""
        if self.edit is not None:
            return self.edit.field
        return with_boxes(self.stages[0].field, self.layout)

    def is_mesh(self, index: int) -> bool:
        """Whether stage ``index`` optimises a mesh."""
        return isinstance(self.field_of(index), GridTetsConfig | MeshFileConfig)

    def prior_of(self, index: int) -> PriorConfig:
        """Settings of the prior that guides stage ``index``."""
        return self.stages[index].prior or self.prior

    def prompt_of(self, index: int) -> str:
        """The prompt as the prior of stage ``index`` knows its words."""
        is_plain = self.subject is None or self.stages[index].subject is not None
        return self.prompt if is_plain else self.subject.class_prompt(self.prompt)

    def __post_init__(self) -> None:
        """Name the subject in the prompt; refuse scenes that cannot run, naming every reason."""
        if self.subject is not None and self.subject.word.strip():
            prompt = self.prompt.replace("{}", self.subject.name)
            object.__setattr__(self, "prompt", prompt)  # frozen for everyone else
        problems = prompt_problems(self.prompt, self.negative_prompt)
        problems += stage_problems(self.stages, self.prior, self.edit)
        problems += subject_problems(self.task, self.subject, self.stages, self.prior, self.prompt)
        problems += layout_problems(self.layout, self.stages, self.view_prompts, self.debias)
        if self.stages and self.export.particle >= self.stages[-1].particles:
            problems.append(
                f"export.particle: is {self.export.particle}, and the last stage has "
                f"{self.stages[-1].particles} - expected fewer, counted from 0."
            )
        if self.debias is not None:
            problems += self._debias_problems(self.debias)
        if isinstance(self.view_prompts, PerpNegPromptsConfig):
            problems += self._perp_neg_problems()
        problems += seed_problems(self.seed)
        if problems:
            raise ValueError("\n  ".join(problems))

    def _perp_neg_problems(self) -> list[str]:
        """Perp-Neg combines directions of one prediction, consistency guidance several ones."""
        return [
            f"view_prompts: perp_neg would leave out the consistency guidance of stages.{index} - "
            "expected another kind, such as directional or interpolated."
            for index, stage in enumerate(self.stages)
            if not isinstance(stage.guidance, OF_SETS)
            if is_consistent(self.prior_of(index), stage.subject)
        ]

    def _debias_problems(self, debias: DebiasConfig) -> list[str]:
        problems = []
        if isinstance(self.view_prompts, PlainPromptsConfig):
            problems.append(
                "debias: changes prompts by view, and view_prompts are plain - expected "
                "view_prompts.kind=directional, or no debias."
            )
        elif all(isinstance(stage.guidance, OF_SETS) for stage in self.stages):
            problems.append(
                "debias: changes prompts by view, and guidance multiview has one prompt for all "
                "views - expected another guidance.kind in some stage, or no debias."
            )
        absent = [word for word in debias.words if word not in self.prompt.split()]
        if absent:
            problems.append(f"debias.words: {absent[0]!r} is not a word of the prompt.")
        return problems
