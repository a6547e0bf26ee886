"""One stage of a scene: field, renderer, background, optimiser and generators, and its hand-off.

``build_stage`` makes what is optimised, ``build_rule`` what pulls at it, and ``load_stage``
reads a finished or running stage back from its run folder, without a prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from guidance.base import GuidanceRule
from guidance.build import build_guidance
from guidance.prompts import build_view_prompts
from image_tools.diffusion.protocol import NoisePrior
from renderers.backgrounds import Background, build_background
from renderers.configs import FieldConfig, HashSDFConfig
from renderers.fields.hash_field import HashField
from renderers.fields.hash_sdf import HashSDFField
from renderers.fields.hash_volume import HashVolumeField
from renderers.volume_renderer import VolumeRenderer
from studio.checkpoints import Checkpoint, generator_states, load_latest, restore_generators
from studio.config import load_scene
from studio.configs import SceneConfig, StageConfig
from studio.device import make_generators, resolve_device
from studio.errors import CheckpointError
from studio.optimizers import build_optimizer, load_optimizer, optimizer_tensors
from studio.progress import say
from studio.run_folder import RunFolder

__all__ = [
    "GENERATORS",
    "LoadedStage",
    "Stage",
    "build_field",
    "build_rule",
    "build_stage",
    "load_stage",
    "rule_tensors",
]

GENERATORS = ("cameras", "shading", "renderer", "occupancy", "guidance", "critic")
"""Subsystems that draw random numbers while a stage runs."""
RULE = "rule."  # before the names of the guidance rule's tensors in a checkpoint


@dataclass
class Stage:
    """What one optimisation changes, and where its random numbers come from."""

    config: StageConfig
    index: int
    renderer: VolumeRenderer
    optimizer: torch.optim.Adam
    generators: dict[str, torch.Generator]
    step: int = 0
    """Steps done in this stage."""

    @property
    def field(self) -> HashField:
        """The field that is optimised."""
        return self.renderer.field

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters by dotted name."""
        return dict(self.renderer.named_parameters())

    @property
    def fraction(self) -> float:
        """How far the stage is, 0 to 1."""
        return self.step / self.config.steps

    def to_checkpoint(self, total_step: int, rule: Mapping[str, Tensor]) -> Checkpoint:
        """Everything that the next steps depend on; ``rule`` is the guidance rule's state."""
        optim = optimizer_tensors(self.optimizer, self.parameters)
        optim |= {RULE + name: value for name, value in rule.items()}
        return Checkpoint(
            step=total_step,
            scene=dict(self.renderer.state_dict()),
            optim={**optim, **generator_states(self.generators)},
            state={"stage": self.index, "stage_name": self.config.name, "stage_step": self.step},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this stage.

        Raises:
            CheckpointError: it belongs to another scene.
        """
        _load_scene(self.renderer, checkpoint.scene)
        load_optimizer(self.optimizer, self.parameters, checkpoint.optim)
        restore_generators(self.generators, checkpoint.optim)
        self.step = checkpoint.state["stage_step"]

    def take_over(self, previous: Stage) -> None:
        """Start from where the previous stage ended: its field, and its background if alike."""
        self.field.load_state_dict(previous.field.state_dict())
        if self.config.background == previous.config.background:
            background = previous.renderer.background.state_dict()
            self.renderer.background.load_state_dict(background)


def build_rule(scene: SceneConfig, index: int, prior: NoisePrior) -> GuidanceRule:
    """The guidance rule of stage ``index``, with the scene's prompts encoded."""
    stage = scene.stages[index]
    prompts = build_view_prompts(scene.view_prompts, prior, scene.prompt, scene.negative_prompt)
    name = f"{stage.name}/rule"
    seed = make_generators((name,), seed=scene.seed, device=torch.device("cpu"))[name]
    return build_guidance(stage.guidance, prior, prompts, seed=seed.initial_seed())


def rule_tensors(optim: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The guidance rule's part of a checkpoint's ``optim``."""
    return {name[len(RULE) :]: value for name, value in optim.items() if name.startswith(RULE)}


def build_field(config: FieldConfig, generator: torch.Generator) -> HashField:
    """The field for a config; ``generator`` draws its initial values."""
    if isinstance(config, HashSDFConfig):
        return HashSDFField(config, generator)
    return HashVolumeField(config, generator)


def build_stage(scene: SceneConfig, index: int, device: torch.device) -> Stage:
    """The stage ``index`` of a scene at its first step, with fresh values."""
    config = scene.stages[index]
    cpu = torch.device("cpu")  # draws are the same numbers on every device
    start = make_generators((f"{config.name}/init",), seed=scene.seed, device=cpu)
    names = tuple(f"{config.name}/{name}" for name in GENERATORS)
    drawn = make_generators(names, seed=scene.seed, device=cpu)
    renderer = _build_renderer(scene, index, start[f"{config.name}/init"]).to(device)
    background = list(renderer.background.parameters())
    groups = {**renderer.field.parameter_groups(), "background": background}
    return Stage(
        config=config,
        index=index,
        renderer=renderer,
        optimizer=build_optimizer(config.optimizer, groups),
        generators=dict(zip(GENERATORS, drawn.values(), strict=True)),
    )


def _build_renderer(scene: SceneConfig, index: int, generator: torch.Generator) -> VolumeRenderer:
    """Field, background and renderer of a stage, with initial values."""
    config = scene.stages[index]
    field = build_field(scene.field_of(index), generator)
    background = build_background(config.background, generator)
    return VolumeRenderer(config.renderer, field, background, config.material)


def _load_scene(renderer: VolumeRenderer, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's parameters and buffers.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        renderer.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(
            f"The checkpoint does not fit the scene ({' '.join(lines)}). Was resolved.yaml edited? "
            "Start a new run with it instead."
        ) from error


@dataclass(frozen=True)
class LoadedStage:
    """The newest stage of a run folder, ready to render and to export."""

    field: HashField
    renderer: VolumeRenderer
    background: Background
    config: SceneConfig
    """The whole scene."""
    stage: StageConfig
    """The settings of this stage."""
    step: int
    """Steps done, over all stages."""


def load_stage(run: RunFolder, device: torch.device | str = "cpu") -> LoadedStage:
    """Read the newest checkpoint of a run.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: this is no run folder.
    """
    run.read_info()
    config = load_scene(run.resolved_path).config
    checkpoint = load_latest(run.checkpoints_dir, warn=say)
    if checkpoint is None:
        raise CheckpointError(
            f"{run.path} has no checkpoint yet - expected at least one. "
            f"Run it first with: studio run --resume {run.path}"
        )
    index = checkpoint.state["stage"]
    renderer = _build_renderer(config, index, torch.Generator().manual_seed(0))
    _load_scene(renderer, checkpoint.scene)
    renderer = renderer.to(resolve_device(str(device))).eval()
    return LoadedStage(
        field=renderer.field,
        renderer=renderer,
        background=renderer.background,
        config=config,
        stage=config.stages[index],
        step=checkpoint.step,
    )
