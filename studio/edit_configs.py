"""The finished run that a scene edits, as a frozen dataclass; importable without torch.

A scene with ``edit`` starts from what another run made: its first stage has the field
``{kind: previous}``, or turns the run's field into a mesh. ``open_edit`` copies from the run's own
record what the new scene must know of it, so that the new run folder stands alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from renderers.box_configs import BoxConfig
from renderers.configs import FieldConfig
from renderers.mesh_configs import GridTetsConfig, MeshFileConfig
from studio.errors import ConfigError
from studio.run_folder import open_run
from studio.suggestions import command

if TYPE_CHECKING:
    from studio.configs import SceneConfig

__all__ = ["EditConfig", "check_edit", "open_edit"]

FINISHED = ("done", "optimised")
"""Statuses of runs whose optimisation came to its end."""


@dataclass(frozen=True)
class EditConfig:
    """A finished run as the start of a scene, beside a frozen copy of it to compare with."""

    run: str = ""
    """Folder of the finished run, such as runs/a-red-mushroom/demo-s0-20261123-031500."""
    particle: int | None = None
    """Which of the run's particles, from 0; empty for the one that it exported."""
    source_prompt: str = ""
    """What the run shows, in words; its own prompt when empty."""
    word: str = ""
    """The word, or words in a row, of the source prompt that names what changes; empty lets
    everything change. Rules that can act on a part alone read it."""
    instruction: str = ""
    """What to change, as an order such as "make it blue", for rules with a model that edits."""
    box: BoxConfig | None = None
    """The part of the scene that is shown to the guidance, such as the box of one object, as large
    as a scene of its own. Empty for everything."""
    keep: float = 10_000.0
    """Weight of staying as it was outside of the box, in density and colour at points of the
    scene; without effect where there is no box."""
    field: FieldConfig | MeshFileConfig | None = None
    """Settings of the run's field, or of a mesh's colours; filled in from the run."""
    mesh: GridTetsConfig | None = None
    """Settings of the run's mesh, if it ended with one; filled in from the run."""

    def __post_init__(self) -> None:
        """Refuse a weight below 0."""
        if not self.keep >= 0.0:
            raise ValueError(f"edit.keep is {self.keep} - expected 0 or more.")

    @property
    def shape(self) -> FieldConfig | GridTetsConfig | MeshFileConfig | None:
        """Settings of what the run ended with; None before it is opened."""
        return self.mesh or self.field


def check_edit(edit: EditConfig) -> None:
    """Refuse a form to fill in, as it stands in presets.

    Raises:
        ConfigError: no run is named.
    """
    if not edit.run.strip():
        raise ConfigError(
            "edit.run: is empty - expected the folder of a finished run to edit. "
            "Add: edit.run=runs/a-red-mushroom/demo-s0-20261123-031500"
        )


def open_edit(scene: SceneConfig, read: Callable[[Path], SceneConfig]) -> SceneConfig:
    """The scene with all that it must know of the run it edits.

    A scene that edits none, names none yet, or knows it already comes back as it is.

    Args:
        scene: as given.
        read: reads a run's ``resolved.yaml``.

    Raises:
        ConfigError: there is no such run, it is not finished, or the scene does not fit it.
    """
    edit = scene.edit
    if edit is None or not edit.run.strip() or edit.field is not None:
        return scene
    run = open_run(edit.run)
    status = run.read_info().get("status")
    if status not in FINISHED:
        raise ConfigError(
            f"edit.run: {edit.run} is {status!r} - expected a finished run. Finish it first with: "
            f"{command('run', '--resume', run.path)}"
        )
    source = read(run.resolved_path)
    last = source.field_of(len(source.stages) - 1)
    opened = replace(
        edit,
        source_prompt=edit.source_prompt or source.prompt,
        field=source.color_field,
        mesh=last if isinstance(last, GridTetsConfig) else None,
    )
    try:
        return replace(scene, edit=opened)
    except ValueError as error:
        raise ConfigError(f"The scene does not fit the run {edit.run}: {error}") from error
