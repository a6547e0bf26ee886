"""One stage of a scene as frozen dataclasses; importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from dataclasses import field as setting  # a stage has a field of its own, the 3D one
from typing import Literal

from guidance.configs import SDSConfig
from guidance.rule_configs import GuidanceConfig
from guidance.schedules import ScheduleValue, check_schedule
from image_tools.configs import PriorConfig
from renderers.configs import (
    AlbedoMaterialConfig,
    BackgroundConfig,
    CamerasConfig,
    FieldConfig,
    HashVolumeConfig,
    MaterialConfig,
    RandomCamerasConfig,
    SolidBackgroundConfig,
    VolumeRendererConfig,
)
from renderers.mesh_configs import GridTetsConfig, MeshFileConfig, MeshRendererConfig
from studio.subject.configs import StageSubjectConfig

__all__ = [
    "AdamConfig",
    "AdamWConfig",
    "LossesConfig",
    "OptimizerConfig",
    "PreviousFieldConfig",
    "RendererConfig",
    "StageConfig",
    "StageFieldConfig",
]


@dataclass(frozen=True)
class LossesConfig:
    """Weights of the loss terms; each is a number or [[fraction, weight], ...]. 0 switches off."""

    guidance: ScheduleValue = 1.0
    """Weight of the guidance rule."""
    autoencoder: ScheduleValue = 0.0
    """Half the squared distance of a render to what the prior's autoencoder reads it as, summed
    over an image: takes away what the encoder does not see, such as colours that it never met. It
    costs a decoding per step."""
    sparsity: ScheduleValue = 0.0
    """mean sqrt(opacity^2 + 0.01): less fog (DreamFusion, arXiv 2209.14988, appendix A.2)."""
    border: ScheduleValue = 0.0
    """Mean opacity along the images' border: no fog where the prior's images have their ground; for
    cameras that see the whole object."""
    opaque: ScheduleValue = 0.0
    """Binary entropy of the opacity: pixels become either solid or empty."""
    orient: ScheduleValue = 0.0
    """Normals that face away from the camera are penalised (Ref-NeRF, arXiv 2112.03907, Eq. 11);
    for volumes only."""
    z_variance: ScheduleValue = 0.0
    """Variance of the depth along a ray: thin surfaces (HiFA, arXiv 2305.18766); for volumes
    only."""
    opacity_smoothness: ScheduleValue = 0.0
    """Total variation of the opacity: fewer floaters and frayed outlines."""
    eikonal: ScheduleValue = 0.0
    """Gradient of a signed distance has length 1 (arXiv 2002.10099); for distance fields only."""
    normal_consistency: ScheduleValue = 0.0
    """Mean of 1 - cos between the normals at both ends of an edge: smooth surfaces; for meshes
    only."""
    laplacian: ScheduleValue = 0.0
    """Mean distance of a vertex to the middle of its neighbours: even, smooth surfaces; for meshes
    only."""
    reconstruction: ScheduleValue = 0.0
    """Distance to a subject's pseudo views at their own cameras (DreamBooth3D, arXiv 2303.13508),
    as subject.reconstruction measures it; in later stages of task dreambooth3d only."""

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
    geometry: ScheduleValue = 0.01
    """Learning rate of a mesh's distances and offsets: about as many cubes a step."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running mean of the gradient and of its square."""
    eps: float = 1e-15
    """Added to the denominator; tiny, because gradients of unused grid cells are tiny."""

    def __post_init__(self) -> None:
        """Refuse rates below 0 and decays outside [0, 1)."""
        for name in ("grid", "network", "background", "geometry"):
            check_schedule(name, getattr(self, name), low=0.0)
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)} - expected two numbers in [0, 1).")
        if not 0.0 < self.eps < math.inf:
            raise ValueError(f"eps is {self.eps} - expected a number above 0.")


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    """Adam with decoupled weight decay (arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    """Tag of this choice."""
    weight_decay: float = 0.01
    """Each step takes this times the group's learning rate off its parameters, hash tables
    included; PyTorch's default."""

    def __post_init__(self) -> None:
        """Refuse what Adam refuses, and a decay below 0."""
        super().__post_init__()
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay} - expected 0 or more.")


OptimizerConfig = AdamConfig | AdamWConfig


@dataclass(frozen=True)
class PreviousFieldConfig:
    """Go on with the field of the stage before."""

    kind: Literal["previous"] = "previous"
    """Tag of this choice."""


StageFieldConfig = FieldConfig | GridTetsConfig | MeshFileConfig | PreviousFieldConfig
RendererConfig = VolumeRendererConfig | MeshRendererConfig


@dataclass(frozen=True)
class StageConfig:
    """One optimisation: a field, seen by a renderer, pulled by a guidance rule."""

    name: str
    """Name of the stage, unique in the scene; overrides may use it in place of the index."""
    steps: int
    """Optimiser steps."""
    field: StageFieldConfig = setting(default_factory=HashVolumeConfig)
    """What is optimised. Later stages go on with it, {kind: previous}, or turn it into a mesh,
    {kind: grid_tets}. {kind: mesh_file} paints a mesh of your own."""
    renderer: RendererConfig = setting(default_factory=VolumeRendererConfig)
    """How the field becomes images: volume for a density or distance field, mesh for a mesh."""
    background: BackgroundConfig = setting(default_factory=SolidBackgroundConfig)
    """What is behind the object."""
    material: MaterialConfig = setting(default_factory=AlbedoMaterialConfig)
    """How light changes the colour."""
    cameras: CamerasConfig = setting(default_factory=RandomCamerasConfig)
    """Views drawn at each step."""
    guidance: GuidanceConfig = setting(default_factory=SDSConfig)
    """Rule that turns the prior's predictions into a gradient."""
    guide_on: Literal["color", "normals"] = "color"
    """What the guidance sees: the render, or its normals as colours, 0.5 n + 0.5 in world axes,
    over the same background (ProlificDreamer's geometry stage, arXiv 2305.16213)."""
    opacity_by: Literal["color", "background"] = "color"
    """What the guidance moves opacity by. color: the plain gradient, which opens a hole where a
    detail shall get a colour nearer to the average background than what is there. background:
    whether the guidance's wish follows the random background; ours, for backgrounds of kind random.
    """
    geometry: Literal["free", "fixed"] = "free"
    """fixed trains the colours of a mesh and leaves its shape alone."""
    particles: int = 1
    """Scenes trained side by side from different initial values. Step k trains scene k mod
    particles, so each gets steps / particles updates."""
    prior: PriorConfig | None = None
    """2D diffusion model of this stage; empty for the scene's."""
    subject: StageSubjectConfig | None = None
    """Which weights of the scene's subject guide this stage; empty for the prior as it is, which
    reads the class word in the subject's place."""
    losses: LossesConfig = setting(default_factory=LossesConfig)
    """Weights of the guidance and of the regularisers."""
    optimizer: OptimizerConfig = setting(default_factory=AdamConfig)
    """Optimiser and learning rates."""

    def __post_init__(self) -> None:
        """Refuse stages without steps, name or particles."""
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps} - expected at least 1.")
        if not self.name.strip():
            raise ValueError("name is empty - expected a word, such as shape.")
        if not 1 <= self.particles <= self.steps:
            raise ValueError(
                f"particles is {self.particles} - expected at least 1, and no more than the "
                f"{self.steps} steps."
            )
