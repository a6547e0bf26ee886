"""From a rule's configuration to the rule; the only place that knows them all."""

from __future__ import annotations

from collections.abc import Sequence

from guidance.base import GuidanceRule
from guidance.configs import SDSConfig
from guidance.control_sds_configs import ControlSDSConfig
from guidance.critic_configs import VSDConfig
from guidance.delta_edit_configs import DeltaEditConfig
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_multiview_configs import LayoutMultiViewConfig
from guidance.layout_parts import LayoutObject
from guidance.multiview_configs import MultiViewConfig
from guidance.object_turns import ObjectTurns
from guidance.original import Original
from guidance.prompts import ViewPrompts
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.rule_configs import GuidanceConfig
from guidance.subjects_sds_configs import SubjectsSDSConfig
from image_tools.diffusion.protocol import NoisePrior
from renderers.cameras import Cameras

__all__ = ["build_guidance"]


def build_guidance(
    config: GuidanceConfig,
    prior: NoisePrior,
    prompts: ViewPrompts,
    *,
    seed: int,
    original: Original | None = None,
    dataset: Cameras | None = None,
    layout: Sequence[LayoutObject] = (),
) -> GuidanceRule:
    """The rule for a config.

    Args:
        config: which rule, with its settings.
        prior: what predicts the noise; a rule may attach adapters to it until it is closed.
        prompts: the scene's prompts, encoded.
        seed: of the initial values of whatever the rule trains.
        original: the finished scene that is edited, for rules that compare with it.
        dataset: cameras of the views that a rule keeps, if it keeps some.
        layout: objects with places of their own, for rules that know them; none for plain SDS.
    """
    if isinstance(config, VSDConfig):
        from guidance.vsd import VSDGuidance

        return VSDGuidance(config, prior, prompts, seed=seed)
    if isinstance(config, DreamFlowConfig):
        from guidance.dreamflow import DreamFlowGuidance

        return DreamFlowGuidance(config, prior, prompts, seed=seed)
    if isinstance(config, MultiViewConfig):
        from guidance.multiview import MultiViewGuidance

        return MultiViewGuidance(config, prior, prompts, seed=seed)
    if isinstance(config, LayoutMultiViewConfig):
        return _multiview_of(config, prior, prompts, layout, seed=seed)
    if isinstance(config, ControlSDSConfig):
        from guidance.control_sds import ControlSDSGuidance

        return ControlSDSGuidance(config, prior, prompts, seed=seed)
    if isinstance(config, InstructSDSConfig | DatasetUpdateConfig | DeltaEditConfig):
        return _edit_rule(config, prior, prompts, original, dataset, seed=seed)
    if isinstance(config, RegionalSDSConfig | LayoutGuidedConfig | SubjectsSDSConfig) and layout:
        return _placed_rule(config, prior, prompts, layout)
    from guidance.sds import SDSGuidance

    plain = config if isinstance(config, SDSConfig) else config.sds
    return SDSGuidance(plain, prior, prompts, seed=seed)


def _multiview_of(
    config: LayoutMultiViewConfig,
    prior: NoisePrior,
    prompts: ViewPrompts,
    layout: Sequence[LayoutObject],
    *,
    seed: int,
) -> GuidanceRule:
    """Multi-view guidance object by object; of the whole scene where it has no layout."""
    from guidance.multiview import MultiViewGuidance

    scene = MultiViewGuidance(config.multiview, prior, prompts, seed=seed)
    if not layout:
        return scene
    return ObjectTurns(
        scene,
        [MultiViewGuidance(config.multiview, prior, item.prompts) for item in layout],
        [item.box for item in layout],
        whole=config.whole,
        object_radius=config.object_radius,
        margin=config.margin,
    )


def _edit_rule(
    config: InstructSDSConfig | DatasetUpdateConfig | DeltaEditConfig,
    prior: NoisePrior,
    prompts: ViewPrompts,
    original: Original,
    dataset: Cameras | None,
    *,
    seed: int,
) -> GuidanceRule:
    """A rule that edits a finished scene."""
    if isinstance(config, InstructSDSConfig):
        from guidance.instruct_edit import InstructSDSGuidance

        return InstructSDSGuidance(config, prior, prompts, original)
    if isinstance(config, DatasetUpdateConfig):
        from guidance.instruct_edit_views import DatasetUpdateGuidance

        return DatasetUpdateGuidance(config, prior, prompts, original, views=dataset, seed=seed)
    from guidance.delta_edit import DeltaEditGuidance

    return DeltaEditGuidance(config, prior, prompts, original)


def _placed_rule(
    config: RegionalSDSConfig | LayoutGuidedConfig | SubjectsSDSConfig,
    prior: NoisePrior,
    prompts: ViewPrompts,
    layout: Sequence[LayoutObject],
) -> GuidanceRule:
    """Score distillation with prompts that know where objects are."""
    from guidance.sds import SDSGuidance

    if isinstance(config, SubjectsSDSConfig):
        if config.is_on:
            from guidance.subjects_sds import SubjectPrompts

            prompts = SubjectPrompts(config, prior, prompts, layout)
        return SDSGuidance(config.sds, prior, prompts)
    if isinstance(config, RegionalSDSConfig):
        from guidance.regional_sds import RegionalPrompts

        prompts = RegionalPrompts(config, prior, prompts, layout)
    elif config.scale > 0.0:
        from guidance.layout_guided import LayoutPrompts

        prompts = LayoutPrompts(config, prior, prompts, layout)
    scene = SDSGuidance(config.sds, prior, prompts)
    if config.close_ups == 0.0:
        return scene
    return ObjectTurns(
        scene,
        [SDSGuidance(config.sds, prior, item.prompts) for item in layout],
        [item.box for item in layout],
        whole=1.0 - config.close_ups,
        object_radius=config.object_radius,
    )
