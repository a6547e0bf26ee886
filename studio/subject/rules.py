"""Which settings of a DreamBooth-to-3D scene fit together. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from guidance.layout_multiview_configs import OF_SETS
from image_tools.configs import (
    DiffusersPriorConfig,
    PersonalizedPriorConfig,
    PocketPriorConfig,
    PriorConfig,
    ReferencedPriorConfig,
)
from image_tools.personalization.dreambooth_configs import DreamBoothConfig
from studio.errors import ConfigError
from studio.stage_configs import StageConfig
from studio.subject.configs import (
    ConsistencySubjectConfig,
    DreamBooth3DConfig,
    PlaceholderTokenConfig,
    PlainSubjectConfig,
    StageSubjectConfig,
)

__all__ = ["check_given", "first_multiview_stage", "is_consistent", "subject_problems"]

TASK = "dreambooth3d"


def subject_problems(
    task: str,
    subject: DreamBooth3DConfig | None,
    stages: Sequence[StageConfig],
    prior: PriorConfig,
    prompt: str,
) -> list[str]:
    """What is wrong with a scene's subject, each with the key at fault; empty when sound.

    Args:
        task: the scene's.
        subject: the scene's.
        stages: in order.
        prior: what the subject is trained on.
        prompt: with the subject's name in it.
    """
    if task != TASK or subject is None:
        return _unwanted(task, subject, stages)
    problems = [
        *_prompt_problems(subject, prompt),
        *_training_problems(subject, prior, stages),
        *_checkpoint_problems(subject),
    ]
    problems += [
        f"subject.views.{text}" for text in _consistency_problems(subject, subject.views.subject)
    ]
    if subject.views.subject.weights == "multiview":
        problems.append(
            "subject.views.subject.weights: multiview weights are made from the views - expected "
            "full or partial."
        )
    for index, stage in enumerate(stages):
        where = f"stages.{index}"
        problems += [f"{where}.{text}" for text in _stage_problems(subject, stage, index)]
    return problems


def first_multiview_stage(stages: Sequence[StageConfig]) -> int | None:
    """Index of the first stage that needs pseudo views; None if none does."""
    return next((index for index, stage in enumerate(stages) if needs_views(stage)), None)


def needs_views(stage: StageConfig) -> bool:
    """Whether a stage compares with pseudo views, or has weights that were trained on them."""
    return stage.losses.reconstruction != 0.0 or has_multiview_weights(stage)


def has_multiview_weights(stage: StageConfig) -> bool:
    """Whether a stage is guided by the weights of the second training."""
    return stage.subject is not None and stage.subject.weights == "multiview"


def check_given(subject: DreamBooth3DConfig) -> None:
    """Refuse a subject that is only a form to fill in, as it stands in presets.

    Raises:
        ConfigError: photos, class word or the subject's word are missing.
    """
    problems = []
    if not subject.images.strip():
        problems.append(
            "subject.images: is missing - expected a folder with three to six photos of your "
            "subject. Add: subject.images=photos/my-dog"
        )
    if not subject.word.strip():
        problems.append(
            "subject.word: the class word is missing - expected what the subject is in a word or "
            "two. Add: subject.word=dog"
        )
    if not subject.token.word.strip():
        problems.append("subject.token.word: is empty - expected a rare word, such as sks.")
    if problems:
        raise ConfigError("\n  ".join(problems))


def _unwanted(
    task: str, subject: DreamBooth3DConfig | None, stages: Sequence[StageConfig]
) -> list[str]:
    """Settings that only make sense with a subject and its task."""
    if task == TASK:
        return [f"subject: is missing - expected the subject's photos for task {TASK}."]
    hint = f"expected task: {TASK}, or no subject."
    problems = [f"subject: is given and task is {task} - {hint}"] if subject else []
    for index, stage in enumerate(stages):
        if stage.subject is not None:
            problems.append(f"stages.{index}.subject: the scene has no subject - {hint}")
        if stage.losses.reconstruction != 0.0:
            problems.append(
                f"stages.{index}.losses.reconstruction: compares with a subject's pseudo views - "
                f"expected 0, or task: {TASK}."
            )
    return problems


def _prompt_problems(subject: DreamBooth3DConfig, prompt: str) -> list[str]:
    """Whether the prompt speaks of the subject; a form to fill in may not yet."""
    if not subject.word.strip() or subject.name in prompt:
        return []
    meant = prompt.replace(subject.word, "{}") if subject.word in prompt else "a {} on a sofa"
    return [
        f"prompt: {prompt!r} does not name the subject - expected {{}} in its place, such as "
        f"prompt={meant!r}."
    ]


def _training_problems(
    subject: DreamBooth3DConfig, prior: PriorConfig, stages: Sequence[StageConfig]
) -> list[str]:
    """Whether the prior can be trained so, and what was learned carried to the stages' priors."""
    if isinstance(subject.training, DreamBoothConfig) and prior.memory.dtype != "float32":
        return [
            f"prior.memory.dtype: is {prior.memory.dtype}, and small updates of a whole denoiser "
            "are lost in it - expected float32 with subject.training.loop.precision, or "
            "subject.training.kind=dreambooth_lora."
        ]
    is_carried = any(stage.subject is not None and stage.prior is not None for stage in stages)
    is_whole = isinstance(subject.training, DreamBoothConfig)
    is_folder = isinstance(prior, PocketPriorConfig) or (
        isinstance(prior, DiffusersPriorConfig) and prior.variant is None
    )
    if is_carried and is_whole and not is_folder:
        return [
            "prior: what a whole denoiser learned is carried to another prior by the difference "
            f"from its folder's weights, and this one is of kind {prior.kind} or of a variant - "
            "expected kind pocket or diffusers, or subject.training.kind=dreambooth_lora."
        ]
    return []


def _checkpoint_problems(subject: DreamBooth3DConfig) -> list[str]:
    """Only the weights that a stage can name are kept of a training."""
    loops = {"training": subject.training.loop, "second_training": subject.second_training.loop}
    if isinstance(subject.token, PlaceholderTokenConfig):
        loops["token"] = subject.token.loop
    return [
        f"subject.{name}.loop.checkpoint_steps: is {list(loop.checkpoint_steps)} - expected none: "
        "the weights after subject.partial_steps and the last are kept, and studio personalize "
        "keeps others too."
        for name, loop in loops.items()
        if loop.checkpoint_steps
    ]


def _stage_problems(subject: DreamBooth3DConfig, stage: StageConfig, index: int) -> list[str]:
    problems = [] if stage.subject is None else _consistency_problems(subject, stage.subject)
    if index == 0 and needs_views(stage):
        problems.append(
            "subject: pseudo views are made of the stage before, and this is the first - expected "
            "weights partial or full, and losses.reconstruction only in a later stage."
        )
    if stage.subject is None:
        return problems
    is_plain = isinstance(stage.subject, PlainSubjectConfig)
    if isinstance(stage.guidance, OF_SETS) and not is_plain:
        problems.append(
            "subject: multiview guidance combines predictions by itself - expected {kind: plain}."
        )
    return problems


def _consistency_problems(subject: DreamBooth3DConfig, use: StageSubjectConfig) -> list[str]:
    """Consistency guidance switches the subject on and off, which only a LoRA can be."""
    is_whole = isinstance(subject.training, DreamBoothConfig)
    if not is_whole or not isinstance(use, ConsistencySubjectConfig):
        return []
    return [
        "subject: consistency guidance needs the prior beside the subject - expected "
        "subject.training.kind=dco or dreambooth_lora, or {kind: plain}."
    ]


def is_consistent(prior: PriorConfig, use: StageSubjectConfig | None) -> bool:
    """Whether a stage is guided by consistency: its prior's, or that of the scene's subject."""
    if isinstance(prior, ReferencedPriorConfig):
        prior = prior.base
    own = isinstance(prior, PersonalizedPriorConfig) and prior.guidance == "consistency"
    return own or isinstance(use, ConsistencySubjectConfig)
