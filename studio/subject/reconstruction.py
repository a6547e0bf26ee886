"""The distance of an object to pseudo views of it, at their own cameras.

    L = mean over scales of  sum m |r - p| / sum m  +  lambda sum m |d r - d p| / sum m

r renders, p pseudo views, m the mask, d the difference to the next pixel, of which that along rows
and that along columns are averaged; each scale halves the one before. Why L1 and differences:
``ReconstructionConfig``. The paper's loss is of the kind of LPIPS, which needs another network.

    loss = Reconstruction(config, views, seed=0)(renderer, step)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.personalization.captioned import rows_of_batch
from renderers.materials import ALBEDO
from studio.scene_parts import SceneRenderer
from studio.subject.configs import ReconstructionConfig
from studio.subject.views import PseudoViews, widened

__all__ = ["Reconstruction", "view_distance"]

SMALL = 1e-6


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

    def __call__(self, renderer: SceneRenderer, step: int) -> Float[Tensor, ""]:
        """The loss of the views that are due at a step of the stage.

        Renders are those of evaluation (its background, no jitter), as the views' originals were.
        """
        count = min(self.config.views_per_step, len(self.cameras))
        rows = rows_of_batch(len(self.cameras), count, seed=self.seed, batch=step)
        output = renderer.render(self.cameras[rows], shading=ALBEDO)
        return view_distance(output.comp_rgb, self.images[rows], self.masks[rows], self.config)


def view_distance(
    renders: Float[Tensor, "b h w 3"],
    views: Float[Tensor, "b h w 3"],
    masks: Float[Tensor, "b h w 1"],
    config: ReconstructionConfig,
) -> Float[Tensor, ""]:
    """The formula above."""
    difference, weight = (renders - views).movedim(-1, 1), masks.movedim(-1, 1)
    total = renders.new_zeros(())
    for scale in range(config.scales):
        if scale:
            difference, weight = F.avg_pool2d(difference, 2), F.avg_pool2d(weight, 2)
        total = total + _mean(difference.abs(), weight)
        along_rows = _mean(difference.diff(dim=3).abs(), weight[:, :, :, 1:])
        along_columns = _mean(difference.diff(dim=2).abs(), weight[:, :, 1:])
        total = total + config.gradient_weight * 0.5 * (along_rows + along_columns)
    return total / config.scales


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over pixels, plain mean over channels."""
    channels = values.shape[1]
    return (values * weight).sum() / (channels * weight.sum()).clamp(min=SMALL)


def _resized(images: Float[Tensor, "n h w c"], size: tuple[int, int]) -> Float[Tensor, "n h w c"]:
    """Images at another size."""
    if tuple(images.shape[1:3]) == size:
        return images
    shrinks = images.shape[1] > size[0]
    resized = F.interpolate(images.movedim(-1, 1), size, mode="bilinear", antialias=shrinks)
    return resized.movedim(1, -1)
