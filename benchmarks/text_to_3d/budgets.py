"""What a scene costs in denoiser evaluations, and the same scene for another number of them.

An evaluation is one row through a denoiser: one latent, once. That is what methods spend alike,
whatever the machine. With b views, a step costs

    guided prediction        2 b;  b at a guidance scale of 1;  4 b with Perp-Neg's two negatives
    critic's prediction      b;  2 b if the critic is guided itself
    critic's training        b for each of its updates

A scene is scaled by its steps. Schedules, milestones and annealed timesteps are fractions of a
stage and stretch with it. What counts steps is scaled along: DreamFlow's timesteps, so that each
still has as many batches of views, and the warm-up of a critic. Scenes of a stage that take turns
keep equal shares.

    overrides = scaled(load_scene("pocket-dreamflow").config, 3200)
"""

from __future__ import annotations

import math

from guidance.configs import PerpNegPromptsConfig, ViewPromptsConfig
from guidance.critic_configs import CriticConfig, VSDConfig
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.multiview_configs import MultiViewConfig
from guidance.rule_configs import GuidanceConfig
from studio.configs import SceneConfig, StageConfig

__all__ = ["scaled", "scene_rows", "stage_rows"]

PERP_NEG_ROWS = 4  # without prompt, with it, and two negatives; at every scale


def scene_rows(scene: SceneConfig) -> int:
    """Rows that all steps of a run send through denoisers."""
    return sum(stage_rows(scene, index) for index in range(len(scene.stages)))


def stage_rows(scene: SceneConfig, index: int) -> int:
    """Rows that the steps of stage ``index`` send through denoisers."""
    stage = scene.stages[index]
    rule = stage.guidance
    rows = _guided_rows(rule, scene.view_prompts)
    if isinstance(rule, (VSDConfig, DreamFlowConfig)):
        rows += _critic_rows(rule.critic)
    return rows * _views(stage)


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


def _guided_rows(rule: GuidanceConfig, prompts: ViewPromptsConfig) -> int:
    """Rows for each view of the prior's guided prediction."""
    if isinstance(prompts, PerpNegPromptsConfig) and not isinstance(rule, MultiViewConfig):
        return PERP_NEG_ROWS
    return 1 if rule.guidance_scale == 1.0 else 2


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
    if isinstance(rule, DreamFlowConfig):
        found.append(f"{key}.guidance.timesteps={max(1, round(ratio * rule.timesteps))}")
    if isinstance(rule, (VSDConfig, DreamFlowConfig)) and rule.critic.warmup_steps:
        warmup = round(ratio * rule.critic.warmup_steps)
        found.append(f"{key}.guidance.critic.warmup_steps={warmup}")
    return found
