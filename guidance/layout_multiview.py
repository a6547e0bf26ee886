"""Multi-view guidance of a scene of several objects, one object at a time.

A prior of several views (MVDream, arXiv 2308.16512) knows single objects from all sides and little
about scenes. Each object of the layout is therefore shown as such a prior knows objects: the
cameras of a step are moved and scaled so that its box takes the place of the whole scene,

    o' = c + s o,   s = (longest edge of the box / 2) / object_radius,

and see nothing outside of it, neither what stands before it nor what behind. The object's own
prompt guides all views of the set, and the prior is told of the cameras as they were drawn. Steps
go to the objects in turn; a share ``whole`` of them, spread evenly, shows the scene with its own
prompt. The composition is ours; nothing of it is published with MVDream.

    guidance = LayoutMultiViewGuidance(config, prior, prompts, objects)
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
from guidance.layout_multiview_configs import LayoutMultiViewConfig
from guidance.layout_parts import LayoutObject
from guidance.multiview import MultiViewGuidance
from guidance.prompts import ViewPrompts
from image_tools.diffusion.multiview import MultiViewPrior
from renderers.boxes import around_box
from renderers.cameras import Cameras

__all__ = ["LayoutMultiViewGuidance", "turn_of"]


class LayoutMultiViewGuidance(GuidanceRule):
    """Shows the objects of a layout in turn, each alone and as large as the image."""

    prior: MultiViewPrior

    def __init__(
        self,
        config: LayoutMultiViewConfig,
        prior: MultiViewPrior,
        prompts: ViewPrompts,
        objects: Sequence[LayoutObject],
    ) -> None:
        """Guide ``objects`` by their own prompts, and the scene by ``prompts``.

        Args:
            config: shares, sizes and the rule around it.
            prior: of several views.
            prompts: of the whole scene.
            objects: at least one.

        Raises:
            UnsupportedModel: if the prior knows single images only.
        """
        self.config, self.prior, self.boxes = config, prior, [item.box for item in objects]
        self.rules = [MultiViewGuidance(config.multiview, prior, item.prompts) for item in objects]
        self.scene = MultiViewGuidance(config.multiview, prior, prompts)
        self.steps = 0
        self._rule, self._drawn, self._chosen = self.scene, None, None

    def choose_views(self, drawn: Cameras) -> Cameras:
        """The drawn views around the object whose turn it is, or of the whole scene."""
        turn = turn_of(self.steps, len(self.boxes), self.config.whole)
        self.steps, self._drawn, self._chosen = self.steps + 1, drawn, drawn
        self._rule = self.scene if turn is None else self.rules[turn]
        if turn is not None:
            radius, margin = self.config.object_radius, self.config.margin
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
