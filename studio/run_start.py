"""A finished run as the start of another: its last field or mesh, and a frozen copy of it.

The new run keeps a copy of what it starts from in its own folder, ``start/``, so that it can be
resumed and its edit repeated when the other run is gone. The frozen copy is rendered as the edited
scene was: same jitter of the samples, same light, same background. Rules that compare the two then
see no difference but the edit.

    start = RunStart(scene, run, device)
    start.give_to(stage)
    start.original.see(output, "color", shading=shading, jitter=generator)
    images = start.original(cameras)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from renderers.boxes import around_box
from renderers.cameras import Cameras
from renderers.errors import ShapeError
from renderers.materials import Shading
from renderers.outputs import RenderOutput
from renderers.volume_renderer import VolumeRenderer
from studio.checkpoints import list_checkpoints, load_latest, save_checkpoint
from studio.configs import SceneConfig
from studio.edit_configs import check_edit
from studio.errors import CheckpointError
from studio.guided_images import guided_images
from studio.progress import say
from studio.run_folder import RunFolder, open_run, storage_errors, write_atomic
from studio.scene_parts import SceneRenderer, hand_over
from studio.stages import Stage, load_stage

__all__ = ["OriginalScene", "RunStart", "copy_run"]

POINTS = 4096
"""Points of each kind at which a scene is held outside of the part that is edited."""


class RunStart:
    """What a scene with ``edit`` starts from."""

    def __init__(self, scene: SceneConfig, run: RunFolder, device: torch.device) -> None:
        """Read it from the run's own folder, after copying it there once.

        Args:
            scene: the scene that edits.
            run: its run folder.
            device: where the frozen copy is put.

        Raises:
            ConfigError: no run is named, or it has no such particle.
            CheckpointError: the run to edit has no checkpoint that can be read.
            StorageError: the copy cannot be written.
        """
        self.box, self.keep = scene.edit.box, scene.edit.keep
        kept = RunFolder(run.start_dir)
        if not list_checkpoints(kept.checkpoints_dir):
            check_edit(scene.edit)
            copy_run(open_run(scene.edit.run), kept)
        loaded = load_stage(kept, device, particle=scene.edit.particle)
        self.renderer: SceneRenderer = loaded.renderer.requires_grad_(False)
        self.background = loaded.stage.background
        self.original = OriginalScene(self.renderer)

    def part_of(self, cameras: Cameras) -> Cameras:
        """The cameras around the part of the scene that is edited, if it is not all of it."""
        return cameras if self.box is None else around_box(cameras, self.box)

    def give_to(self, stage: Stage) -> None:
        """Let every particle of a stage begin as the run ended.

        Raises:
            EmptyGeometry: a mesh should begin and there is no surface.
        """
        alike = stage.config.background == self.background
        for particle in stage.particles:
            hand_over(self.renderer, particle, same_background=alike)

    def change_outside(self, edited: VolumeRenderer, step: int) -> Float[Tensor, ""] | None:
        """Weighted change of the scene outside of the part that is edited; None without a part.

        The network behind the hash grid is shared by all places: an object that turns green would
        take the others along. At random points, half of them where the original holds matter,

            keep * mean((a' - a)^2 + a |c' - c|^2 / 3),   a = 1 - exp(-sigma step)

        with the opacity of one step of the renderer and the colour, before and after.

        Args:
            edited: the scene as it is.
            step: the number of the step, from which the points are drawn.
        """
        if self.box is None:
            return None
        x = self._points_outside(step)
        if not len(x):  # the box holds the whole scene
            return None
        before, now = self.renderer.field.query(x), edited.field.query(x)
        length = self.renderer.occupancy.step_size
        old, new = (-torch.expm1(-length * one.sigma) for one in (before, now))
        color = (now.albedo - before.albedo).square().mean(dim=-1)
        return self.keep * ((new - old).square() + old * color).mean()

    def _points_outside(self, step: int) -> Float[Tensor, "n 3"]:
        """Points outside of the box, half of them in occupied cells of the original."""
        grid, draw = self.renderer.occupancy, torch.Generator().manual_seed(step)
        center, size = torch.tensor(self.box.center), torch.tensor(self.box.size)
        inside = grid.cells_within(torch.stack([center - 0.5 * size, center + 0.5 * size])[None])
        corners = [torch.zeros(0, 3)]
        for found in (~inside, ~inside & grid.binary):
            cells = found.nonzero().cpu()
            if len(cells):
                corners.append(cells[torch.randint(len(cells), (POINTS,), generator=draw)])
        corner = torch.cat(corners)
        places = corner + torch.rand(corner.shape, generator=draw)
        return (places * (2.0 * grid.radius / grid.resolution) - grid.radius).to(grid.values)


class OriginalScene:
    """The frozen scene, seen as the edited one was seen last."""

    def __init__(self, renderer: SceneRenderer) -> None:
        """Show ``renderer``, which nothing trains."""
        self.renderer = renderer
        self._background: Tensor | None = None
        self._shading: Shading | None = None
        self._jitter: torch.Generator | None = None
        self._guide_on: Literal["color", "normals"] = "color"

    def see(
        self,
        edited: RenderOutput,
        guide_on: Literal["color", "normals"] = "color",
        *,
        shading: Shading | None = None,
        jitter: torch.Generator | None = None,
    ) -> None:
        """Tell how the edited scene was rendered.

        Args:
            edited: the render; its background is used.
            guide_on: what the guidance sees of it.
            shading: how it was lit; None as in evaluation.
            jitter: a generator in the state from which its samples were jittered; None as in
                evaluation.
        """
        self._background, self._shading = edited.comp_rgb_bg.detach(), shading
        self._jitter, self._guide_on = jitter, guide_on

    def __call__(self, cameras: Cameras) -> Float[Tensor, "b h w 3"]:
        """The original's images from the same views, without gradient.

        Raises:
            ShapeError: if the edited scene was not rendered from as many views before.
        """
        jitter = None if self._jitter is None else self._jitter.clone_state()
        # A volume samples its rays as in training only where gradients are enabled.
        with torch.set_grad_enabled(jitter is not None):
            output = self.renderer.render(
                cameras,
                generator=jitter,
                shading=self._shading,
                with_normals=self._guide_on == "normals",
            )
        shape = tuple(output.comp_rgb.shape)
        if self._background is None or tuple(self._background.shape) != shape:
            seen = None if self._background is None else tuple(self._background.shape)
            raise ShapeError(
                f"The original is rendered as {shape} and the edited scene was as {seen} - "
                "expected the same. Tell it each render with see() first."
            )
        return guided_images(output.over(self._background), self._guide_on).detach()


def copy_run(source: RunFolder, to: RunFolder) -> None:
    """Copy a run's scene and its newest checkpoint, without what only training needs.

    Raises:
        CheckpointError: it has no checkpoint that can be read.
        StorageError: the copy cannot be written.
    """
    checkpoint = load_latest(source.checkpoints_dir, warn=say)
    if checkpoint is None:
        raise CheckpointError(
            f"edit.run: {source.path} has no checkpoint - expected a finished run. "
            "Run its scene again."
        )
    with storage_errors(to.path, "copy the run to edit to"):
        to.path.mkdir(parents=True, exist_ok=True)
        write_atomic(to.resolved_path, source.resolved_path.read_bytes())
        write_atomic(to.info_path, source.info_path.read_bytes())
    save_checkpoint(to.checkpoints_dir, replace(checkpoint, optim={}))
