"""Guidance of a scene of several objects, one object at a time.

A prior knows single objects in the middle of images, from all sides, and little about scenes, in
which each object is small besides. Each object of the layout is therefore shown as the prior knows
objects: the cameras of a step are moved and scaled so that its box takes the place of the whole
scene,

    o' = c + s o,   s = (longest edge of the box / 2) / object_radius,

and see nothing outside of it, neither what stands before it nor what behind. The object's own
prompt guides, and the prior is told of the cameras as they were drawn. Steps go to the objects in
turn; a share ``whole`` of them, spread evenly, shows the scene with its own prompt. The composition
is ours, around score distillation as around multi-view guidance (MVDream, arXiv 2308.16512).

    guidance = ObjectTurns(of_scene, [of_duck, of_mushroom], boxes, whole=0.4)
    cameras = guidance.choose_views(drawn)
    guided = guidance(renderer.render(cameras).comp_rgb, cameras, fraction=0.3, generator=generator)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from renderers.box_configs import BoxConfig
from renderers.boxes import around_box
from renderers.cameras import Cameras

__all__ = ["ObjectTurns", "turn_of"]


class ObjectTurns(GuidanceRule):
    """Shows the objects of a layout in turn, each alone and as large as the image."""

    def __init__(
        self,
        scene: GuidanceRule,
        alone: Sequence[GuidanceRule],
        boxes: Sequence[BoxConfig],
        *,
        whole: float,
        object_radius: float = 0.85,
        margin: float = 1.1,
    ) -> None:
        """Guide each box by a rule of its own. The rules keep nothing between steps.

        Args:
            scene: guides the whole scene.
            alone: guide one object each.
            boxes: where they stand.
            whole: share of the steps that show the scene.
            object_radius: radius of a single object in the images that the prior knows; it becomes
                half of the longest edge of each box.
            margin: size of what is seen, in boxes.
        """
        self.prior, self.scene, self.alone, self.boxes = scene.prior, scene, alone, boxes
        self.whole, self.object_radius, self.margin = whole, object_radius, margin
        self.steps = 0
        self._rule, self._drawn, self._chosen = scene, None, None

    def choose_views(self, drawn: Cameras) -> Cameras:
        """The drawn views around the object whose turn it is, or of the whole scene."""
        turn = turn_of(self.steps, len(self.boxes), self.whole)
        self.steps, self._drawn, self._chosen = self.steps + 1, drawn, drawn
        self._rule = self.scene if turn is None else self.alone[turn]
        if turn is not None:
            radius, margin = self.object_radius, self.margin
            box = self.boxes[turn]
            self._chosen = around_box(drawn, box, object_radius=radius, margin=margin)
        return self._chosen

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for renders of the views that were chosen last; of others as whole scenes."""
        if cameras is self._chosen:
            return self._rule(images, self._drawn, fraction=fraction, generator=generator)
        return self.scene(images, cameras, fraction=fraction, generator=generator)

    def state(self) -> dict[str, Tensor]:
        """Whose turn it is."""
        return {"steps": torch.tensor(self.steps)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with the next one's turn."""
        self.steps = int(tensors["steps"])


def turn_of(step: int, n_objects: int, whole: float) -> int | None:
    """The object that step ``step`` shows; None for the whole scene.

    Of the first ``n`` steps ``floor(n whole)`` show the scene, and objects follow each other in
    the others.
    """
    before, after = math.floor(step * whole), math.floor((step + 1) * whole)
    return None if after > before else (step - before) % n_objects
