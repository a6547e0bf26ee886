"""A subject while its scene is optimised: preparations, priors with its weights, reconstruction.

``Runner`` has one for scenes of ``task: dreambooth3d`` and none for all others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from guidance.schedules import value_at
from studio.configs import SceneConfig
from studio.run_folder import RunFolder
from studio.scene_parts import SceneRenderer
from studio.stages import Stage
from studio.stop_request import StopRequest
from studio.subject.folder import SubjectFolder
from studio.subject.preparation import SubjectPreparation
from studio.subject.priors import SubjectPriors
from studio.subject.reconstruction import Reconstruction
from studio.subject.rules import first_multiview_stage

__all__ = ["SubjectRun"]


class SubjectRun:
    """What a subject adds to the optimisation."""

    def __init__(self, scene: SceneConfig, run: RunFolder, device: torch.device) -> None:
        """Look for the priors' weights; nothing is prepared yet.

        Raises:
            WeightsMissing: the weights of some stage are not there.
        """
        self.scene, self.device = scene, device
        self.preparation = SubjectPreparation(scene, run, device)
        self.priors = SubjectPriors(scene, device, SubjectFolder(run.subject_dir))
        self._reconstruction: Reconstruction | None = None

    def is_due(self, index: int) -> bool:
        """Whether something is done before stage ``index``."""
        return index in (0, first_multiview_stage(self.scene.stages))

    def prepare(self, index: int, renderer: SceneRenderer | None) -> None:
        """Do it, as far as it is not done.

        Args:
            index: the stage that is about to begin.
            renderer: the object at the end of the stage before; None before the first.

        Raises:
            Interrupted: after Ctrl-C; what is done is kept.
            StudioError: photos, words or weights cannot be used.
        """
        self.priors.drop()
        with StopRequest() as stop:
            self.preparation.before(index, renderer, should_stop=lambda: stop.asked)

    def set_fraction(self, index: int, fraction: float) -> None:
        """Tell what depends on it how far stage ``index`` is (0 to 1)."""
        self.priors.set_fraction(index, fraction)

    def compare(self, stage: Stage, renderer: SceneRenderer) -> Tensor | None:
        """The reconstruction loss of a step; None where it has no weight."""
        if value_at(stage.config.losses.reconstruction, stage.fraction) == 0.0:
            return None
        if self._reconstruction is None:
            self._reconstruction = Reconstruction(
                self.scene.subject.reconstruction,
                self.preparation.views(),
                seed=self.scene.seed,
                device=self.device,
            )
        return self._reconstruction(renderer, stage.step)
