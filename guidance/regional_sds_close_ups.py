"""Close-ups of single objects: the second half of score distillation by regions.

In a view of several objects each is small, and a prior that learned single objects in the middle of
images has little to say about it. In a share of the steps each view therefore shows one object
alone: what lies outside of its box, or hides it, is replaced by the background, the box is enlarged
to the whole image, and the object's own prompt guides. Which object is drawn anew for each view,
among those that are not mostly hidden. All is differentiable, so the gradient reaches the scene.

    guidance = CloseUpGuidance(config, prior, RegionalPrompts(config, prior, scene, objects))
    guidance.look(output, cameras)
    guided = guidance(output.comp_rgb, cameras, fraction=0.3, generator=generator)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from guidance.base import GuidanceOutput
from guidance.prompts import ViewCondition
from guidance.regional_sds import RegionalPrompts
from guidance.regional_sds_configs import RegionalSDSConfig
from guidance.sds import SDSGuidance
from guidance.views import CameraAngles
from image_tools.diffusion.conditions import cat_embeddings
from image_tools.diffusion.protocol import NoisePrior
from renderers.box_configs import BoxConfig
from renderers.boxes import box_corners, box_masks, project_points
from renderers.cameras import Cameras
from renderers.outputs import RenderOutput

__all__ = ["CloseUpGuidance", "close_ups", "draw_objects"]

MARGIN = 1.1
"""Size of what is cut out, in boxes; objects may stand a little over."""
SEEN = 0.5
"""Least share of an object's box that must not be hidden in a close-up."""


class CloseUpGuidance(SDSGuidance):
    """Score distillation by regions, and of single objects in a share of the steps."""

    prompts: RegionalPrompts

    def __init__(
        self, config: RegionalSDSConfig, prior: NoisePrior, prompts: RegionalPrompts
    ) -> None:
        """Guide whole views by ``prompts``, and close-ups by those of its objects."""
        super().__init__(config.sds, prior, prompts)
        self.share = config.close_ups
        self._background: Tensor | None = None

    def look(self, output: RenderOutput, cameras: Cameras) -> None:
        """See what stands behind the objects."""
        self._background = output.comp_rgb_bg.detach()

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance of whole views, or of a close-up of each."""
        drawn = float(torch.rand((), generator=generator, device=generator.device))
        if drawn >= self.share:
            return super().__call__(images, cameras, fraction=fraction, generator=generator)
        boxes = [_larger(item.box) for item in self.prompts.objects]
        masks = box_masks(boxes, cameras, tuple(images.shape[1:3]))
        chosen = draw_objects(boxes, cameras, masks, generator=generator)
        background = torch.ones_like(images) if self._background is None else self._background
        cut = close_ups(images, background, boxes, cameras, masks, chosen)
        alone = SDSGuidance(self.config, self.prior, _OwnPrompts(self.prompts, chosen))
        return alone(cut, cameras, fraction=fraction, generator=generator)


@dataclass(frozen=True)
class _OwnPrompts:
    """One object's prompt for each view."""

    regional: RegionalPrompts
    chosen: Int[Tensor, " b"]

    @property
    def prompt(self) -> str:
        return self.regional.prompt

    def at(self, cameras: CameraAngles) -> ViewCondition:
        texts = [item.prompts.at(cameras) for item in self.regional.objects]
        views = torch.arange(len(self.chosen))
        rows = self.chosen.cpu() * len(views) + views
        positive = cat_embeddings([text.positive for text in texts]).select(rows)
        return ViewCondition(positive, texts[0].uncond)


def draw_objects(
    boxes: list[BoxConfig],
    cameras: Cameras,
    masks: Float[Tensor, "b k h w"],
    *,
    generator: torch.Generator,
) -> Int[Tensor, " b"]:
    """One object for each view, among those of which enough is seen."""
    alone = torch.cat([box_masks([box], cameras, tuple(masks.shape[-2:])) for box in boxes], dim=1)
    area = alone.sum(dim=(2, 3))
    seen = (masks.sum(dim=(2, 3)) >= SEEN * area) & (area > 0.0)
    seen = seen | ~seen.any(dim=1, keepdim=True)  # nothing is seen well: any will do
    weights = seen.float().to(generator.device)
    return torch.multinomial(weights, 1, generator=generator)[:, 0].to(masks.device)


def close_ups(
    images: Float[Tensor, "b h w 3"],
    background: Float[Tensor, "b h w 3"],
    boxes: list[BoxConfig],
    cameras: Cameras,
    masks: Float[Tensor, "b k h w"],
    chosen: Int[Tensor, " b"],
) -> Float[Tensor, "b h w 3"]:
    """One object of each view alone, as large as the image."""
    views = torch.arange(len(images), device=images.device)
    mask = masks[views, chosen][..., None]
    over = torch.lerp(background, images, mask.to(images)).movedim(-1, 1)
    places, _ = project_points(cameras, box_corners(boxes).flatten(0, 1))
    corners = places.unflatten(1, (len(boxes), 8))[views, chosen]
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    pixels = high.new_tensor([images.shape[2], images.shape[1]])
    half = 0.5 * ((high - low) * pixels).amax(dim=1, keepdim=True) / pixels
    # A square in pixels: from shares of the image, 0 to 1, to those of the grid, -1 to 1.
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, [0, 1], [0, 1]] = 2.0 * half
    theta[:, :, 2] = low + high - 1.0
    grid = F.affine_grid(theta, list(over.shape), align_corners=False)
    return F.grid_sample(over, grid, padding_mode="border", align_corners=False).movedim(1, -1)


def _larger(box: BoxConfig) -> BoxConfig:
    return BoxConfig(box.center, tuple(MARGIN * length for length in box.size))
