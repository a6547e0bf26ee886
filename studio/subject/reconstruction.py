"""The distance of an object to pseudo views of it, at their own cameras.

The formula is that of ``guidance.image_distance``; why L1 and differences is told there and in
``ReconstructionConfig``. The paper's loss is of the kind of LPIPS, which needs another network.

    loss = Reconstruction(config, views, seed=0)(renderer, step)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.image_distance import image_distance
from image_tools.personalization.captioned import rows_of_batch
from renderers.materials import ALBEDO
from studio.scene_parts import SceneRenderer
from studio.subject.configs import ReconstructionConfig
from studio.subject.views import PseudoViews, widened

__all__ = ["Reconstruction", "view_distance"]


class Reconstruction:
    """Compares some of the pseudo views in each step; which ones depends on seed and step alone."""

    def __init__(
        self, config: ReconstructionConfig, views: PseudoViews, *, seed: int, device: torch.device
    ) -> None:
        """Shrink the views to the size of the renders."""
        self.config, self.seed = config, seed
        size = (config.size, config.size)
        masks = torch.ones_like(views.masks)
        if config.mask_margin is not None:
            masks = widened(views.masks, config.mask_margin)
        self.images = _resized(views.images, size).to(device)
        self.masks = _resized(masks, size).to(device)
        self.cameras = views.cameras.resized(*size).to(device)
        self.grounds = None if views.grounds is None else views.grounds[:, None, None].to(device)

    def __call__(self, renderer: SceneRenderer, step: int) -> Float[Tensor, ""]:
        """The loss of the views that are due at a step of the stage.

        Renders are those of evaluation (no jitter), before the views' grounds where these are known
        and else before its background, as the views' originals were.
        """
        count = min(self.config.views_per_step, len(self.cameras))
        rows = rows_of_batch(len(self.cameras), count, seed=self.seed, batch=step)
        output = renderer.render(self.cameras[rows], shading=ALBEDO)
        if self.grounds is not None:
            output = output.over(self.grounds[rows])
        return view_distance(output.comp_rgb, self.images[rows], self.masks[rows], self.config)


def view_distance(
    renders: Float[Tensor, "b h w 3"],
    views: Float[Tensor, "b h w 3"],
    masks: Float[Tensor, "b h w 1"],
    config: ReconstructionConfig,
) -> Float[Tensor, ""]:
    """How far renders are from pseudo views, as ``config`` says."""
    return image_distance(
        renders, views, masks, scales=config.scales, gradient_weight=config.gradient_weight
    )


def _resized(images: Float[Tensor, "n h w c"], size: tuple[int, int]) -> Float[Tensor, "n h w c"]:
    """Images at another size."""
    if tuple(images.shape[1:3]) == size:
        return images
    shrinks = images.shape[1] > size[0]
    resized = F.interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=shrinks)
    return resized.movedim(1, -1)
