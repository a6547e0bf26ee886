"""Priors with a subject's weights on them: what guides a stage, redraws views and draws samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from guidance.schedules import value_at
from image_tools.configs import PriorConfig
from image_tools.diffusion.layout import locate_folder
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.personalization.consistency import ConsistencyPrior
from image_tools.personalization.dreambooth_configs import DreamBoothConfig
from image_tools.personalization.personalized import attach_subjects, personalized_prior
from image_tools.personalization.personalized_configs import (
    EmbeddingUseConfig,
    LoraUseConfig,
    SubjectConfig,
)
from studio.config import dump
from studio.configs import SceneConfig
from studio.stage_priors import StagePriors
from studio.subject.configs import (
    ConsistencySubjectConfig,
    DreamBooth3DConfig,
    PlaceholderTokenConfig,
    StageSubjectConfig,
)
from studio.subject.folder import SubjectFolder

__all__ = ["SubjectPriors", "with_subject", "worded_prior"]


class SubjectPriors(StagePriors):
    """The prior of each stage, with the subject's weights that the stage names."""

    def __init__(self, scene: SceneConfig, device: torch.device, folder: SubjectFolder) -> None:
        """Look for the weights of all stages' plain priors.

        Raises:
            WeightsMissing: the weights of some stage are not there.
        """
        super().__init__(scene, device)
        self.folder = folder
        self._guiding: DiffusionPrior | ConsistencyPrior | None = None
        self._made_of: Any = None

    def at(self, index: int) -> DiffusionPrior:
        """The prior of stage ``index``. Whoever holds the one before must have let go of it.

        Raises:
            WeightsMissing: its weights, or the subject's, are not there.
        """
        subject, use = self.scene.subject, self.scene.stages[index].subject
        made_of = self.scene.prior_of(index), use
        if self._guiding is None or made_of != self._made_of:
            self.drop()
            plain = super().at(index)
            is_plain = subject is None or use is None
            origin = None if self.scene.stages[index].prior is None else self.scene.prior
            self._guiding = (
                plain
                if is_plain
                else with_subject(plain, subject, use, self.folder, trained_from=origin)
            )
            self._made_of = made_of
        return self._guiding

    def drop(self) -> None:
        """Let go of the prior: what is attached to one must not reach the next."""
        self._guiding = self._prior = self._config = self._made_of = None

    def set_fraction(self, index: int, fraction: float) -> None:
        """Tell consistency guidance how far stage ``index`` is (0 to 1)."""
        use, guiding = self.scene.stages[index].subject, self._guiding
        if isinstance(use, ConsistencySubjectConfig) and isinstance(guiding, ConsistencyPrior):
            scale = value_at(use.scale, fraction)
            guiding.students = tuple(replace(one, scale=scale) for one in guiding.students)

    def record(self, index: int) -> dict[str, Any]:
        """Settings and fingerprint of stage ``index``'s prior, for ``run.json``, by its key."""
        ((key, values),) = super().record(index).items()
        return {key: {**values, "subject": dump(self.scene.stages[index].subject)}}

    def key(self, index: int) -> str:
        """The name of stage ``index``'s prior; one with a subject is the stage's own."""
        stage = self.scene.stages[index]
        return super().key(index) if stage.subject is None else f"stages.{stage.name}.subject"


def with_subject(
    prior: DiffusionPrior,
    subject: DreamBooth3DConfig,
    use: StageSubjectConfig,
    folder: SubjectFolder,
    *,
    trained_from: PriorConfig | None = None,
) -> DiffusionPrior | ConsistencyPrior:
    """A freshly loaded prior with the subject's weights, for good.

    Args:
        prior: what the subject was trained on, or a relative of it.
        subject: how it was trained.
        use: which of its weights.
        folder: where they are.
        trained_from: what it was trained on, where the prior is a relative.

    Raises:
        WeightsMissing: they are not in the run's folder.
        UnsupportedModel: they were trained from another kind of model.
    """
    is_lora = not isinstance(subject.training, DreamBoothConfig)
    path = str(folder.weights(use.weights, is_lora=is_lora))
    is_carried = trained_from is not None and not is_lora
    is_consistent = isinstance(use, ConsistencySubjectConfig)
    attached = SubjectConfig(
        loras=(LoraUseConfig(path),) if is_lora else (),
        weights=None if is_lora else path,
        weights_from=str(locate_folder(trained_from)[0]) if is_carried else None,
        embeddings=_words(subject, folder),
        token=subject.name,
        word=subject.word,
        consistency_scale=value_at(use.scale, 0.0) if is_consistent else 0.0,
    )
    return personalized_prior(
        prior,
        [attached],
        guidance="consistency" if is_consistent else "plain",
        parallel=use.parallel if is_consistent else 1.0,
    )


def worded_prior(
    scene: SceneConfig, device: torch.device, folder: SubjectFolder, *, with_word: bool = True
) -> DiffusionPrior:
    """The scene's prior as it comes from its files, with the placeholder if there is one.

    Raises:
        WeightsMissing: its weights are not there.
    """
    prior = load_prior(scene.prior, device)
    words = _words(scene.subject, folder) if with_word else ()
    if words:
        attach_subjects(prior, [SubjectConfig(embeddings=words)])
    return prior


def _words(subject: DreamBooth3DConfig, folder: SubjectFolder) -> tuple[EmbeddingUseConfig, ...]:
    """The placeholder's file, if there is one."""
    if not isinstance(subject.token, PlaceholderTokenConfig):
        return ()
    return (EmbeddingUseConfig(str(folder.word), subject.token.word),)
