"""The union of all guidance rules' configurations, importable without torch."""

from __future__ import annotations

from guidance.configs import SDSConfig
from guidance.control_sds_configs import ControlSDSConfig
from guidance.critic_configs import VSDConfig
from guidance.delta_edit_configs import DeltaEditConfig
from guidance.dreamflow_configs import DreamFlowConfig
from guidance.instruct_edit_configs import DatasetUpdateConfig, InstructSDSConfig
from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_multiview_configs import LayoutMultiViewConfig
from guidance.multiview_configs import MultiViewConfig
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.subjects_sds_configs import SubjectsSDSConfig

__all__ = ["GuidanceConfig"]

GuidanceConfig = (
    SDSConfig
    | VSDConfig
    | DreamFlowConfig
    | MultiViewConfig
    | ControlSDSConfig
    | InstructSDSConfig
    | DatasetUpdateConfig
    | DeltaEditConfig
    | LayoutGuidedConfig
    | LayoutMultiViewConfig
    | RegionalSDSConfig
    | SubjectsSDSConfig
)
