"""The objects of a scene's layout for a guidance rule: boxes, with their prompts encoded."""

from __future__ import annotations

from guidance.layout_parts import LayoutObject
from guidance.prompts import build_view_prompts
from image_tools.diffusion.protocol import NoisePrior
from studio.configs import SceneConfig

__all__ = ["layout_objects"]


def layout_objects(scene: SceneConfig, prior: NoisePrior) -> tuple[LayoutObject, ...]:
    """Each object with the scene's words for views; none where the scene has no layout."""
    return tuple(
        LayoutObject(
            item.box,
            build_view_prompts(scene.view_prompts, prior, item.prompt, scene.negative_prompt),
        )
        for item in scene.layout
    )
