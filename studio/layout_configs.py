"""Objects with prompts and places in a scene file, as a frozen dataclass; without torch.

layout:
  - {prompt: a red mushroom, center: [0.0, -0.45, 0.0], size: [0.7, 0.7, 1.0]}
  - {prompt: a blue teapot, center: [0.0, 0.45, 0.0], size: [0.8, 0.8, 0.7]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from guidance.configs import (
    MAX_RELATED,
    PerpNegPromptsConfig,
    RelationPromptsConfig,
    ViewPromptsConfig,
)
from guidance.debiasing_configs import DebiasConfig
from guidance.delta_edit_configs import DeltaEditConfig
from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_multiview_configs import OF_SETS, LayoutMultiViewConfig
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.subjects_sds_configs import SubjectsSDSConfig
from renderers.box_configs import BoxConfig, BoxesBlobConfig
from renderers.configs import HashVolumeConfig
from renderers.mesh_configs import MeshRendererConfig
from studio.stage_configs import StageConfig

__all__ = ["ObjectBoxConfig", "layout_problems", "with_boxes"]


@dataclass(frozen=True)
class ObjectBoxConfig(BoxConfig):
    """An object of the scene: what it is, and the box it stands in."""

    prompt: str
    """What it is. Guidance of kind layout_guided looks for these words in the scene's prompt."""

    @property
    def box(self) -> BoxConfig:
        """The box alone."""
        return BoxConfig(self.center, self.size)


def with_boxes(field: object, layout: Sequence[ObjectBoxConfig]) -> object:
    """A field's settings, where a start in boxes that names none gets those of the layout."""
    starts = isinstance(field, HashVolumeConfig) and isinstance(field.blob, BoxesBlobConfig)
    if not starts or field.blob.boxes:
        return field
    return replace(field, blob=replace(field.blob, boxes=tuple(item.box for item in layout)))


def layout_problems(
    layout: Sequence[ObjectBoxConfig],
    stages: Sequence[StageConfig],
    view_prompts: ViewPromptsConfig,
    debias: DebiasConfig | None,
) -> list[str]:
    """What is wrong with a scene's layout, each with the key at fault; empty when sound."""
    rules = [stage.guidance for stage in stages]
    starts = [_starts_in_boxes(stage) for stage in stages]
    problems = [
        f"layout.{k}.prompt: is empty - expected what stands there, such as a red mushroom."
        for k, item in enumerate(layout)
        if not item.prompt.strip()
    ]
    speaks = isinstance(view_prompts, RelationPromptsConfig)
    if speaks:
        problems += _relation_problems(layout, rules, debias)
    if not layout:
        if any(starts):
            problems.append(
                "layout: is empty, and field.blob of kind blob_boxes takes its boxes - expected "
                "objects, each with prompt, center and size."
            )
        return problems
    if not speaks and not any(starts) and not any(_reads_layout(rule) for rule in rules):
        problems.append(
            "layout: no stage reads it - expected guidance of kind layout_multiview, regional_sds, "
            "layout_guided or subjects_sds, view_prompts.kind=relations, or "
            "field.blob.kind=blob_boxes."
        )
    problems += [
        f"stages.{k}.renderer: is {stage.renderer.kind}, and guidance {stage.guidance.kind} "
        "renders objects alone, which a mesh cannot - expected {kind: volume}, or no close_ups."
        for k, stage in enumerate(stages)
        if _shows_objects_alone(stage.guidance) and isinstance(stage.renderer, MeshRendererConfig)
    ]
    problems += _prompt_problems(rules, view_prompts, debias)
    problems += _subject_problems(layout, rules, view_prompts)
    return problems + _places_outside(layout, stages[0] if stages else None)


def _prompt_problems(
    rules: Sequence[object], view_prompts: ViewPromptsConfig, debias: DebiasConfig | None
) -> list[str]:
    problems = []
    if debias is not None and any(isinstance(rule, LayoutGuidedConfig) for rule in rules):
        problems.append(
            "debias: drops words by view, and guidance layout_guided follows the prompt's words - "
            "expected no debias."
        )
    if isinstance(view_prompts, PerpNegPromptsConfig) and any(
        isinstance(rule, RegionalSDSConfig) for rule in rules
    ):
        problems.append(
            "view_prompts: perp_neg has negatives that belong to no region - expected directional, "
            "interpolated or plain with guidance regional_sds."
        )
    return problems


def _relation_problems(
    layout: Sequence[ObjectBoxConfig], rules: Sequence[object], debias: DebiasConfig | None
) -> list[str]:
    problems = []
    if not 2 <= len(layout) <= MAX_RELATED:
        problems.append(
            f"view_prompts: relations are those of the layout's objects, which has {len(layout)} - "
            f"expected 2 to {MAX_RELATED}."
        )
    if debias is not None:
        problems.append(
            "debias: drops words of the prompt by view, and view_prompts relations write each "
            "view's prompt themselves - expected no debias."
        )
    return problems + [
        f"stages.{k}.guidance: {rule.kind} has one prompt for all views or one that is edited, and "
        "view_prompts are relations - expected another kind of either."
        for k, rule in enumerate(rules)
        if isinstance(rule, OF_SETS | DeltaEditConfig)
    ]


def _subject_problems(
    layout: Sequence[ObjectBoxConfig], rules: Sequence[object], view_prompts: ViewPromptsConfig
) -> list[str]:
    placed = {k: rule for k, rule in enumerate(rules) if isinstance(rule, SubjectsSDSConfig)}
    problems = [
        f"stages.{k}.guidance.tool.subjects.{n}.phrase: '{subject.phrase}' names no object of its "
        "own in the layout - expected words of one of its prompts."
        for k, rule in placed.items()
        for n, subject in enumerate(rule.tool.subjects)
        if rule.objects_in([item.prompt for item in layout])[n] is None
    ]
    if placed and isinstance(view_prompts, PerpNegPromptsConfig):
        problems.append(
            "view_prompts: perp_neg has negatives that would show the subjects too - expected "
            "directional, interpolated or plain with guidance subjects_sds."
        )
    return problems


def _places_outside(layout: Sequence[ObjectBoxConfig], first: StageConfig | None) -> list[str]:
    radius = getattr(first and first.field, "radius", None)
    if radius is None:  # a mesh, or what another run ended with
        return []
    return [
        f"layout.{k}.center: {list(item.center)} lies outside of the scene - expected numbers "
        f"from {-radius:g} to {radius:g}, its field's radius."
        for k, item in enumerate(layout)
        if max(map(abs, item.center)) > radius
    ]


def _starts_in_boxes(stage: StageConfig) -> bool:
    blob = getattr(stage.field, "blob", None)
    return isinstance(blob, BoxesBlobConfig) and not blob.boxes


def _shows_objects_alone(rule: object) -> bool:
    return isinstance(rule, LayoutMultiViewConfig) or getattr(rule, "close_ups", 0.0) > 0.0


def _reads_layout(rule: object) -> bool:
    return isinstance(
        rule, LayoutMultiViewConfig | RegionalSDSConfig | LayoutGuidedConfig | SubjectsSDSConfig
    )
