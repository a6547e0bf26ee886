"""The scene file as frozen dataclasses; ``studio explain`` prints the text under each field.

A scene is a prompt, a prior, and stages; each stage ties a field, a renderer and a guidance rule
together. Importable without torch.
"""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass, fields
from dataclasses import field as setting  # a stage has a field of its own, the 3D one
from typing import Literal

from guidance.configs import DirectionalPromptsConfig, SDSConfig, ViewPromptsConfig
from guidance.rule_configs import GuidanceConfig
from guidance.schedules import ScheduleValue, check_schedule
from image_tools.configs import PocketPriorConfig, PriorConfig
from renderers.configs import (
    AlbedoMaterialConfig,
    BackgroundConfig,
    CamerasConfig,
    FieldConfig,
    HashSDFConfig,
    HashVolumeConfig,
    MaterialConfig,
    RandomCamerasConfig,
    SolidBackgroundConfig,
    VolumeRendererConfig,
)
from studio.export.configs import ExportConfig

__all__ = [
    "AdamConfig",
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

MAX_PROMPT = 1000  # characters; text encoders read 24 to 77 tokens, so more is a mistake

RendererConfig = VolumeRendererConfig


@dataclass(frozen=True)
class LossesConfig:
    """Weights of the loss terms; each is a number or [[fraction, weight], ...]. 0 switches off."""

    guidance: ScheduleValue = 1.0
    """Weight of the guidance rule."""
    sparsity: ScheduleValue = 0.0
    """mean sqrt(opacity^2 + 0.01): less fog (DreamFusion, arXiv 2209.14988, appendix A.2)."""
    opaque: ScheduleValue = 0.0
    """Binary entropy of the opacity: pixels become either solid or empty."""
    orient: ScheduleValue = 0.0
    """Normals that face away from the camera are penalised (Ref-NeRF, arXiv 2112.03907, Eq. 11)."""
    z_variance: ScheduleValue = 0.0
    """Variance of the depth along a ray: thin surfaces (HiFA, arXiv 2305.18766)."""
    opacity_smoothness: ScheduleValue = 0.0
    """Total variation of the opacity: fewer floaters and frayed outlines."""
    eikonal: ScheduleValue = 0.0
    """Gradient of a signed distance has length 1 (arXiv 2002.10099); for distance fields only."""

    def __post_init__(self) -> None:
        """Refuse malformed schedules and negative weights."""
        for entry in fields(self):
            check_schedule(entry.name, getattr(self, entry.name), low=0.0)


@dataclass(frozen=True)
class AdamConfig:
    """Adam (arXiv 1412.6980), fused; one learning rate for each group of parameters."""

    kind: Literal["adam"] = "adam"
    """Tag of this choice."""
    grid: ScheduleValue = 0.01
    """Learning rate of the hash grid's tables."""
    network: ScheduleValue = 0.003
    """Learning rate of the field's other parameters."""
    background: ScheduleValue = 0.001
    """Learning rate of the background's parameters."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = 1e-15
    """Added to the denominator; tiny, because gradients of unused grid cells are tiny."""

    def __post_init__(self) -> None:
        """Refuse rates below 0 and decays outside [0, 1)."""
        for name in ("grid", "network", "background"):
            check_schedule(name, getattr(self, name), low=0.0)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)} - expected two numbers in [0, 1).")
        if not 0.0 < self.eps < math.inf:
            raise ValueError(f"eps is {self.eps} - expected a number above 0.")


OptimizerConfig = AdamConfig


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
class PreviousFieldConfig:
    """Go on with the field of the stage before."""

    kind: Literal["previous"] = "previous"
    """Tag of this choice."""


StageFieldConfig = FieldConfig | PreviousFieldConfig


@dataclass(frozen=True)
class StageConfig:
    """One optimisation: a field, seen by a renderer, pulled by a guidance rule."""

    name: str
    """Name of the stage, unique in the scene; overrides may use it in place of the index."""
    steps: int
    """Optimiser steps."""
    field: StageFieldConfig = setting(default_factory=HashVolumeConfig)
    """What is optimised. Later stages go on with it: {kind: previous}."""
    renderer: RendererConfig = setting(default_factory=VolumeRendererConfig)
    """How the field becomes images."""
    background: BackgroundConfig = setting(default_factory=SolidBackgroundConfig)
    """What is behind the object."""
    material: MaterialConfig = setting(default_factory=AlbedoMaterialConfig)
    """How light changes the colour."""
    cameras: CamerasConfig = setting(default_factory=RandomCamerasConfig)
    """Views drawn at each step."""
    guidance: GuidanceConfig = setting(default_factory=SDSConfig)
    """Rule that turns the prior's predictions into a gradient."""
    losses: LossesConfig = setting(default_factory=LossesConfig)
    """Weights of the guidance and of the regularisers."""
    optimizer: OptimizerConfig = setting(default_factory=AdamConfig)
    """Optimiser and learning rates."""

    def __post_init__(self) -> None:
        """Refuse stages without steps or name."""
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps} - expected at least 1.")
        if not self.name.strip():
            raise ValueError("name is empty - expected a word, such as shape.")


@dataclass(frozen=True)
class SceneConfig:
    """A whole scene: what to make, with which prior, in which stages."""

    stages: tuple[StageConfig, ...]
    """Optimisations, one after the other."""
    task: Literal["text_to_3d"] = "text_to_3d"
    """What the scene is for."""
    prompt: str = ""
    """What to make, in words."""
    negative_prompt: str = ""
    """What it should not look like; the unconditional prompt when empty."""
    seed: int = 0
    """Seed of every random draw; the same seed on the same machine gives the same bits."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    prior: PriorConfig = setting(default_factory=PocketPriorConfig)
    """2D diffusion model that judges the renders."""
    view_prompts: ViewPromptsConfig = setting(default_factory=DirectionalPromptsConfig)
    """How the prompt depends on the view."""
    export: ExportConfig = setting(default_factory=ExportConfig)
    """Asset files written at the end."""
    saving: SavingConfig = setting(default_factory=SavingConfig)
    """Checkpoints and previews."""

    def field_of(self, index: int) -> FieldConfig:
        """Settings of the field that stage ``index`` optimises."""
        while isinstance(self.stages[index].field, PreviousFieldConfig):
            index -= 1
        return self.stages[index].field

    def __post_init__(self) -> None:
        """Refuse scenes that cannot run, naming every reason."""
        problems = [*self._prompt_problems(), *self._stage_problems()]
        if not 0 <= self.seed < 2**63:
            problems.append(f"seed: got {self.seed} - expected 0 or more, below 2^63.")
        if problems:
            raise ValueError("\n  ".join(problems))

    def _prompt_problems(self) -> list[str]:
        problems = []
        if not self.prompt.strip():
            problems.append(
                "prompt: is empty - expected what to make, such as prompt='a red mushroom'."
            )
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if len(text) > MAX_PROMPT:
                problems.append(
                    f"{name}: has {len(text)} characters - expected at most {MAX_PROMPT}; "
                    "a text encoder reads its first few dozen words only."
                )
            bad = {c for c in text if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t"}
            if bad:
                codes = ", ".join(f"U+{ord(c):04X}" for c in sorted(bad)[:3])
                problems.append(f"{name}: holds control characters ({codes}). Remove them.")
        return problems

    def _stage_problems(self) -> list[str]:
        if not self.stages:
            return ["stages: is empty - expected at least one stage."]
        names = [stage.name for stage in self.stages]
        twice = sorted({name for name in names if names.count(name) > 1})
        problems = [f"stages: the name {name!r} stands twice - name each once." for name in twice]
        for index, stage in enumerate(self.stages):
            goes_on = isinstance(stage.field, PreviousFieldConfig)
            if goes_on != (index > 0):
                wanted = "{kind: previous}" if index else "a field of its own"
                problems.append(f"stages.{index}.field: expected {wanted}, got {stage.field.kind}.")
            first = self.stages[0].field
            if stage.losses.eikonal != 0.0 and not isinstance(first, HashSDFConfig):
                problems.append(
                    f"stages.{index}.losses.eikonal: needs a signed distance - expected 0, or "
                    "stages.0.field.kind=hash_sdf."
                )
        return problems
