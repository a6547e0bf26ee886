"""The prior of each stage: loaded when its stage begins, after the one before is dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args

import torch

from image_tools.configs import PriorConfig
from image_tools.diffusion.layout import find_prior_files
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.prior import DiffusionPrior
from studio.config import dump
from studio.configs import SceneConfig
from studio.task_configs import TaskConfig

__all__ = ["StagePriors", "prior_key", "priors_of"]


class StagePriors:
    """Holds one prior at a time: two large ones would not fit on most GPUs."""

    def __init__(self, scene: SceneConfig, device: torch.device) -> None:
        """Look for the weights of all stages, so that none turns out to be missing hours later.

        Raises:
            WeightsMissing: the weights of some stage are not there.
        """
        self.scene, self.device = scene, device
        self._config: PriorConfig | None = None
        self._prior: DiffusionPrior | None = None
        for _, config in priors_of(scene):
            find_prior_files(config)

    def at(self, index: int) -> DiffusionPrior:
        """The prior of stage ``index``. Whoever holds the one before must have let go of it.

        Raises:
            WeightsMissing: its weights are not there.
        """
        config = self.scene.prior_of(index)
        if self._prior is None or config != self._config:
            self._prior = None
            self._prior, self._config = load_prior(config, self.device), config
        return self._prior

    def record(self, index: int) -> dict[str, Any]:
        """Settings and fingerprint of stage ``index``'s prior, for ``run.json``, by its key."""
        values = {**dump(self.scene.prior_of(index)), "fingerprint": self.at(index).fingerprint}
        return {self.key(index): values}

    def key(self, index: int) -> str:
        """The name of stage ``index``'s prior, as in the scene file."""
        return prior_key(self.scene, index)


def prior_key(scene: SceneConfig, index: int) -> str:
    """The name of stage ``index``'s prior: ``prior`` for the scene's."""
    stage = scene.stages[index]
    return "prior" if stage.prior is None else f"stages.{stage.name}.prior"


def priors_of(scene: TaskConfig) -> Iterator[tuple[str, PriorConfig]]:
    """Every prior that draws, or that guides some stage, and every critic's own, by its key in the
    scene file."""
    if not isinstance(scene, SceneConfig):
        yield "prior", scene.prior
        return
    found = {prior_key(scene, k): scene.prior_of(k) for k in range(len(scene.stages))}
    for stage in scene.stages:
        found |= _priors_in(stage.guidance, f"stages.{stage.name}.guidance")
    yield from found.items()


def _priors_in(config: Any, key: str) -> dict[str, PriorConfig]:
    """Every prior below a config, by its key."""
    if isinstance(config, get_args(PriorConfig)):
        return {key: config}
    found: dict[str, PriorConfig] = {}
    if dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            found |= _priors_in(getattr(config, field.name), f"{key}.{field.name}")
    return found
