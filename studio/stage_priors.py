"""The prior of each stage: loaded when its stage begins, after the one before is dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from image_tools.configs import (
    DiffusersPriorConfig,
    MVDreamPriorConfig,
    PocketMultiViewPriorConfig,
    PriorConfig,
    SingleFilePriorConfig,
)
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.mvdream_weights import find_mvdream_file
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.weights import check_safetensors_file, find_model_folder
from image_tools.pocket.paths import pocket_folder, pocket_mv_folder
from studio.config import dump
from studio.configs import SceneConfig

__all__ = ["StagePriors"]

ROLE = "prior"


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
        for config in _priors_in(scene):
            _find_weights(config)

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
        """The name of stage ``index``'s prior: ``prior`` for the scene's."""
        stage = self.scene.stages[index]
        return "prior" if stage.prior is None else f"stages.{stage.name}.prior"


def _priors_in(config: Any) -> Iterator[PriorConfig]:
    """Every prior in a config, also those of critics."""
    if isinstance(config, get_args(PriorConfig)):
        yield config
    elif dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            yield from _priors_in(getattr(config, field.name))
    elif isinstance(config, tuple):
        for item in config:
            yield from _priors_in(item)


def _find_weights(config: PriorConfig) -> None:
    """Raise ``WeightsMissing`` when there is nothing to load."""
    if isinstance(config, SingleFilePriorConfig):
        check_safetensors_file(Path(config.path).expanduser(), role=ROLE)
    elif isinstance(config, DiffusersPriorConfig | MVDreamPriorConfig):
        model = config.model if isinstance(config, DiffusersPriorConfig) else config.base
        find_model_folder(model, role=ROLE, revision=config.revision, variant=config.variant)
        if isinstance(config, MVDreamPriorConfig):
            find_mvdream_file(Path(config.weights).expanduser())
    elif isinstance(config, PocketMultiViewPriorConfig):
        pocket_mv_folder(_folder(config.path))
        pocket_folder(_folder(config.base))
    else:
        pocket_folder(_folder(config.path))


def _folder(path: str | None) -> Path | None:
    return Path(path).expanduser() if path else None
