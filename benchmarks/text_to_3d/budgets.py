"""What a scene costs in denoiser evaluations, and the same scene for another number of them.

An evaluation is one row through a denoiser: one latent, once. That is what methods spend alike,
whatever the machine. With b views, a step costs

    guided prediction        2 b;  b at a guidance scale of 1;  4 b with Perp-Neg's two negatives;
                             (2 + n) b at any scale with consistency guidance by n students
    layout guidance          b more in views at min_t or above, by the average of noise levels
    regional SDS             as guided; with mode latent once for the scene and once for each of its
                             objects, close-ups once
    a delta edit             as guided for each of both scenes, and 2 b to find words
    critic's prediction      b;  2 b if the critic is guided itself
    critic's training        b for each of its updates
    an edit model's          3 b, for both scales and neither; with views that are kept, so many for
                             each denoising step of an update, on the average of noise levels

A ControlNet beside the denoiser is not counted. An object that no view of a step sees costs nothing
in that step of regional SDS, and is counted.

A scene is scaled by its steps. Schedules, milestones and annealed timesteps are fractions of a
stage and stretch with it. What counts steps is scaled along: DreamFlow's timesteps, so that each
still has as many batches of views, and the warm-up of a critic. Scenes of a stage that take turns
keep equal shares.

    overrides = scaled(load_scene("pocket-dreamflow").config, 3200)
"""

from __future__ import annotations

import math

from guidance.configs import (
    AnnealedTimestepsConfig,
    PerpNegPromptsConfig,
    TimestepsConfig,
    UniformTimestepsConfig,
)
from guidance.control_sds_configs import ControlSDSConfig
from guidance.critic_configs import CriticConfig, VSDConfig
from guidance.delta_edit_configs import DeltaEditConfig, WordMaskConfig
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_multiview_configs import LayoutMultiViewConfig
from guidance.multiview_configs import MultiViewConfig
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.rule_configs import GuidanceConfig
from guidance.schedules import value_at
from image_tools.configs import PersonalizedPriorConfig
from studio.configs import SceneConfig, StageConfig
from studio.subject.configs import ConsistencySubjectConfig

__all__ = ["scaled", "scene_rows", "stage_rows"]

EDIT_ROWS = 3  # with instruction and image, with the image, with neither
NOISE_LEVELS = 32  # for averages
SCENES = 2  # the edited one and the original
PERP_NEG_ROWS = 4  # without prompt, with it, and two negatives; at every scale


def scene_rows(scene: SceneConfig) -> int:
    """Rows that all steps of a run send through denoisers."""
    return sum(stage_rows(scene, index) for index in range(len(scene.stages)))


def stage_rows(scene: SceneConfig, index: int) -> int:
    """Rows that the steps of stage ``index`` send through denoisers."""
    stage = scene.stages[index]
    rule = _inner(stage.guidance)
    if isinstance(rule, DatasetUpdateConfig):
        return round(stage.steps * _updated_rows(rule))
    rows = _predicted_rows(scene, index)
    if isinstance(rule, (VSDConfig, DreamFlowConfig)):
        rows += _critic_rows(rule.critic)
    return round(rows * _views(stage))


def scaled(scene: SceneConfig, evaluations: int) -> tuple[str, ...]:
    """Overrides that make ``scene`` cost about ``evaluations`` rows.

    Every stage keeps its share, to the nearest step that may be taken; what one stage has too many
    the next one has too few.
    """
    rows = [stage_rows(scene, index) for index in range(len(scene.stages))]
    factor, owed, overrides = evaluations / sum(rows), 0.0, []
    for index, (stage, cost) in enumerate(zip(scene.stages, rows, strict=True)):
        wanted, per_step, unit = factor * cost + owed, cost / stage.steps, _unit(stage)
        steps = unit * max(1, round(wanted / per_step / unit))
        owed = wanted - per_step * steps
        overrides += _overrides(f"stages.{index}", stage, steps)
    return tuple(overrides)


def _predicted_rows(scene: SceneConfig, index: int) -> float:
    """Rows for each view of all that the prior predicts, on average."""
    rule, guided = scene.stages[index].guidance, _guided_rows(scene, index)
    if isinstance(rule, DeltaEditConfig):
        looks = 1 if isinstance(rule.mask, WordMaskConfig) else 0
        return SCENES * (guided + looks)
    if not scene.layout:
        return guided
    if isinstance(rule, LayoutGuidedConfig) and rule.scale > 0.0:
        levels = _noise_levels(rule.sds.timesteps)
        moved = sum(level >= rule.min_t for level in levels) / len(levels)
        return guided + (1.0 - rule.close_ups) * moved
    if isinstance(rule, RegionalSDSConfig) and rule.mode == "latent" and rule.base_ratio < 1.0:
        return guided * (1.0 + (1.0 - rule.close_ups) * len(scene.layout))
    return guided


def _guided_rows(scene: SceneConfig, index: int) -> float:
    """Rows for each view of one guided prediction of the prior, on average."""
    rule, steps = _inner(scene.stages[index].guidance), scene.stages[index].steps
    if isinstance(rule, InstructSDSConfig):
        return EDIT_ROWS
    if isinstance(scene.view_prompts, PerpNegPromptsConfig) and not isinstance(
        rule, MultiViewConfig
    ):
        return PERP_NEG_ROWS
    students = _students(scene, index)
    if students:
        return 2 + students
    scales = (value_at(rule.guidance_scale, step / steps) for step in range(steps))
    return 1 + sum(scale != 1.0 for scale in scales) / steps


def _inner(rule: GuidanceConfig) -> GuidanceConfig:
    """The rule that a ControlNet stands beside, or that is told places."""
    if isinstance(rule, RegionalSDSConfig | LayoutGuidedConfig):
        return rule.sds
    if isinstance(rule, LayoutMultiViewConfig):
        return rule.multiview
    return rule.rule if isinstance(rule, ControlSDSConfig) else rule


def _updated_rows(rule: DatasetUpdateConfig) -> float:
    """Rows for each step of the updates of kept views, on average."""
    levels = _noise_levels(UniformTimestepsConfig(min_t=rule.min_t, max_t=rule.max_t))
    steps = [max(1, round(level * rule.sampler.steps)) for level in levels if level > 0.0]
    return EDIT_ROWS * rule.views_per_step / rule.every * sum(steps) / len(levels)


def _noise_levels(timesteps: TimestepsConfig) -> list[float]:
    """Shares of the training length that a stage comes to, evenly over its steps and draws."""
    shares = [(2 * k + 1) / (2 * NOISE_LEVELS) for k in range(NOISE_LEVELS)]
    if isinstance(timesteps, AnnealedTimestepsConfig):
        fall = timesteps.start_t - timesteps.end_t
        return [timesteps.start_t - fall * fraction**timesteps.power for fraction in shares]
    return [
        low + share * max(value_at(timesteps.max_t, fraction) - low, 0.0)
        for fraction in shares
        for low in [value_at(timesteps.min_t, fraction)]
        for share in shares
    ]


def _students(scene: SceneConfig, index: int) -> int:
    """Students of consistency guidance; 0 where a stage has none."""
    if isinstance(scene.stages[index].subject, ConsistencySubjectConfig):
        return 1
    prior = scene.prior_of(index)
    is_consistent = isinstance(prior, PersonalizedPriorConfig) and prior.guidance == "consistency"
    return len(prior.subjects) if is_consistent else 0


def _critic_rows(critic: CriticConfig) -> int:
    """Rows for each view of the critic: its prediction and its updates."""
    return (1 if critic.guidance_scale == 1.0 else 2) + critic.steps


def _views(stage: StageConfig) -> int:
    """Views that all steps of a stage render."""
    from renderers.camera_sampling import milestone_at  # torch: the command line need not wait

    cameras = stage.cameras
    if not cameras.milestones:
        return stage.steps * cameras.batch_size
    fractions = (step / stage.steps for step in range(stage.steps))
    return sum(milestone_at(cameras, fraction).batch_size for fraction in fractions)


def _unit(stage: StageConfig) -> int:
    """Steps are taken in multiples of this: whole rounds of particles, and whole timesteps."""
    rule = stage.guidance
    if isinstance(rule, DreamFlowConfig) and stage.steps % rule.timesteps == 0:
        return math.lcm(stage.particles, stage.steps // rule.timesteps)
    return stage.particles


def _overrides(key: str, stage: StageConfig, steps: int) -> list[str]:
    """The settings of a stage of another number of steps."""
    rule, ratio = stage.guidance, steps / stage.steps
    found = [f"{key}.steps={steps}"]
    where = f"{key}.guidance.rule" if isinstance(rule, ControlSDSConfig) else f"{key}.guidance"
    rule = _inner(rule)
    if isinstance(rule, DreamFlowConfig):
        found.append(f"{where}.timesteps={max(1, round(ratio * rule.timesteps))}")
    if isinstance(rule, (VSDConfig, DreamFlowConfig)) and rule.critic.warmup_steps:
        warmup = round(ratio * rule.critic.warmup_steps)
        found.append(f"{where}.critic.warmup_steps={warmup}")
    return found
