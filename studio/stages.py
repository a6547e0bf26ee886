"""One stage of a scene: what it optimises, its optimiser and generators, and its hand-off.

``build_stage`` makes a stage at its first step, and ``load_stage`` reads a finished or running one
back from its run folder, without a prior.

A stage may hold several particles: scenes with initial values of their own, as a set of samples of
what the prompt means (ProlificDreamer, arXiv 2305.16213, section 3.2). Step k trains particle
k mod n alone, so that a step costs the same time and memory for any number of particles, while a
critic that learns from every step learns from all of them. Adam leaves parameters without gradient
as they are, so one optimiser serves all. Each particle gets steps / n updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from renderers.backgrounds import Background
from renderers.fields.hash_field import HashField
from renderers.fields.tet_mesh import TetMeshField
from studio.checkpoints import Checkpoint, generator_states, load_latest, restore_generators
from studio.config import load_scene
from studio.configs import SceneConfig, StageConfig
from studio.device import make_generators, resolve_device
from studio.errors import CheckpointError, ConfigError
from studio.optimizers import build_optimizer, load_optimizer, optimizer_tensors
from studio.progress import say
from studio.run_folder import RunFolder
from studio.scene_parts import SceneRenderer, build_renderer, hand_over
from studio.stage_configs import PreviousFieldConfig
from studio.suggestions import command

__all__ = ["GENERATORS", "LoadedStage", "Stage", "build_stage", "load_stage", "rule_tensors"]

GENERATORS = ("cameras", "shading", "renderer", "occupancy", "guidance", "critic")
"""Subsystems that draw random numbers while a stage runs."""
RULE = "rule."  # before the names of the guidance rule's tensors in a checkpoint


@dataclass
class Stage:
    """What one optimisation changes, and where its random numbers come from."""

    config: StageConfig
    index: int
    particles: list[SceneRenderer]
    """Scenes trained side by side; previews and exports show the first unless told otherwise."""
    optimizer: torch.optim.Optimizer
    generators: dict[str, torch.Generator]
    step: int = 0
    """Steps done in this stage."""

    @property
    def renderer(self) -> SceneRenderer:
        """The first particle."""
        return self.particles[0]

    @property
    def field(self) -> HashField | TetMeshField:
        """The first particle's field or mesh."""
        return self.renderer.field

    @property
    def turn(self) -> int:
        """Index of the particle that the next step trains."""
        return self.step % len(self.particles)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters by dotted name."""
        return {
            particle_prefix(k) + name: parameter
            for k, particle in enumerate(self.particles)
            for name, parameter in particle.named_parameters()
        }

    @property
    def fraction(self) -> float:
        """How far the stage is, 0 to 1."""
        return self.step / self.config.steps

    def open_levels(self, renderer: SceneRenderer) -> None:
        """Open the hash grid's levels as far as the stage is.

        What an earlier stage or run made keeps the levels that it had opened, or it would not be
        what it was at the switch.
        """
        if not isinstance(self.config.field, PreviousFieldConfig):
            renderer.set_fraction(self.fraction)

    def to_checkpoint(
        self,
        total_step: int,
        rule: Mapping[str, Tensor] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> Checkpoint:
        """Everything that the next steps depend on.

        Args:
            total_step: steps done, over all stages.
            rule: the guidance rule's state, if it has one.
            counts: what is counted over the whole run, by name.
        """
        optim = optimizer_tensors(self.optimizer, self.parameters)
        optim |= {RULE + name: value for name, value in (rule or {}).items()}
        scene = {
            particle_prefix(k) + name: value
            for k, particle in enumerate(self.particles)
            for name, value in particle.state_dict().items()
        }
        return Checkpoint(
            step=total_step,
            scene=scene,
            optim={**optim, **generator_states(self.generators)},
            state={
                "stage": self.index,
                "stage_name": self.config.name,
                "stage_step": self.step,
                **(counts or {}),
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of this stage.

        Raises:
            CheckpointError: it belongs to another scene.
        """
        for k, particle in enumerate(self.particles):
            _load_particle(particle, k, checkpoint.scene)
        load_optimizer(self.optimizer, self.parameters, checkpoint.optim)
        restore_generators(self.generators, checkpoint.optim)
        self.step = checkpoint.state["stage_step"]

    def take_over(self, previous: Stage) -> None:
        """Start from where the previous stage ended, particle by particle.

        Raises:
            EmptyGeometry: a mesh should begin and there is no surface.
        """
        alike = self.config.background == previous.config.background
        # Fewer particles than before: the first ones go on.
        for theirs, mine in zip(previous.particles, self.particles, strict=False):
            hand_over(theirs, mine, same_background=alike)


def particle_prefix(index: int) -> str:
    """What the names of a particle's tensors begin with; nothing for the first."""
    return f"particle.{index}." if index else ""


def rule_tensors(optim: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The guidance rule's part of a checkpoint's ``optim``."""
    return {name[len(RULE) :]: value for name, value in optim.items() if name.startswith(RULE)}


def build_stage(scene: SceneConfig, index: int, device: torch.device) -> Stage:
    """The stage ``index`` of a scene at its first step, with fresh values."""
    config = scene.stages[index]
    cpu = torch.device("cpu")  # draws are the same numbers on every device
    names = tuple(f"{config.name}/{name}" for name in GENERATORS)
    drawn = make_generators(names, seed=scene.seed, device=cpu)
    starts = tuple(
        f"{config.name}/init/{k}" if k else f"{config.name}/init" for k in range(config.particles)
    )
    start = make_generators(starts, seed=scene.seed, device=cpu)
    particles = [build_renderer(scene, index, start[name]).to(device) for name in starts]
    return Stage(
        config=config,
        index=index,
        particles=particles,
        optimizer=build_optimizer(config.optimizer, _parameter_groups(particles)),
        generators=dict(zip(GENERATORS, drawn.values(), strict=True)),
    )


def _parameter_groups(particles: list[SceneRenderer]) -> dict[str, list[nn.Parameter]]:
    """Trained parameters of all particles by the learning rate they get."""
    groups: dict[str, list[nn.Parameter]] = {}
    for particle in particles:
        background = list(particle.background.parameters())
        for name, some in {**particle.field.parameter_groups(), "background": background}.items():
            groups.setdefault(name, []).extend(some)
    return groups


def _load_particle(particle: SceneRenderer, index: int, tensors: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's parameters and buffers of one particle.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = particle_prefix(index)
    mine = {
        name[len(own) :]: value
        for name, value in tensors.items()
        if name.startswith(own) and (index or not name.startswith("particle."))
    }
    try:
        particle.load_state_dict(mine, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(
            f"The checkpoint does not fit the scene ({' '.join(lines)}). Was resolved.yaml edited? "
            "Start a new run with it instead."
        ) from error


@dataclass(frozen=True)
class LoadedStage:
    """The newest stage of a run folder, ready to render and to export."""

    field: HashField | TetMeshField
    renderer: SceneRenderer
    background: Background
    config: SceneConfig
    """The whole scene."""
    stage: StageConfig
    """The settings of this stage."""
    step: int
    """Steps done, over all stages."""


def load_stage(
    run: RunFolder, device: torch.device | str = "cpu", *, particle: int | None = None
) -> LoadedStage:
    """Read the newest checkpoint of a run.

    Args:
        run: the run folder.
        device: where the stage is put.
        particle: which one, for stages with several; that of the scene's export when None.

    Raises:
        CheckpointError: there is none, or it cannot be read.
        ConfigError: this is no run folder, or it has no such particle.
    """
    run.read_info()
    config = load_scene(run.resolved_path).config
    checkpoint = load_latest(run.checkpoints_dir, warn=say)
    if checkpoint is None:
        raise CheckpointError(
            f"{run.path} has no checkpoint yet - expected at least one. "
            f"Run it first with: {command('run', '--resume', run.path)}"
        )
    index = checkpoint.state["stage"]
    stage = config.stages[index]
    chosen = config.export.particle if particle is None else particle
    if chosen >= stage.particles:
        raise ConfigError(
            f"particle: is {chosen}, and stage {stage.name} has {stage.particles} - expected "
            "fewer, counted from 0."
        )
    renderer = build_renderer(config, index, torch.Generator().manual_seed(0))
    _load_particle(renderer, chosen, checkpoint.scene)
    renderer = renderer.to(resolve_device(str(device))).eval()
    if isinstance(renderer.field, TetMeshField):
        renderer.field.freeze_geometry()  # so that the mesh is made once
    return LoadedStage(
        field=renderer.field,
        renderer=renderer,
        background=renderer.background,
        config=config,
        stage=stage,
        step=checkpoint.step,
    )
