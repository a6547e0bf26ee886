"""Cameras of the views that a rule keeps and edits, at the middle of a stage's distances."""

from __future__ import annotations

from guidance.instruct_edit_configs import DatasetUpdateConfig
from renderers.cameras import Cameras
from renderers.configs import CamerasConfig
from studio.subject.configs import PseudoViewsConfig
from studio.subject.views import view_cameras

__all__ = ["dataset_views"]


def dataset_views(config: DatasetUpdateConfig, cameras: CamerasConfig) -> Cameras:
    """Views evenly around the object, front first, at the stage's image size."""
    ring = PseudoViewsConfig(count=config.count, elevations_deg=config.elevations_deg)
    return view_cameras(ring, cameras, size=cameras.height)
