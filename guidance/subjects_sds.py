"""Score distillation with subjects: objects of a layout look like images of things of one's own.

The 3D form of MS-Diffusion (arXiv 2406.07209; ``image_tools.personalization.ms_diffusion``). In
each view the boxes of the layout are projected, the nearest box first; what is seen of a box makes
the rectangle in which the denoiser attends to its subject's images:

    g = w(t) (eps_guided(z_t; c, {images_k in rectangle_k}) - eps)

A subject whose box is hidden, or seen in less than ``least_area`` of the image, is left out of that
view, and subjects count less from behind (``fade``), since their images show one side. It is SDS
with prompts that know where things are, so the rule is ``SDSGuidance`` itself.

    prompts = SubjectPrompts(config, prior, prompts, objects)
    guidance = SDSGuidance(config.sds, prior, prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.layout_parts import LayoutObject
from guidance.prompts import ViewCondition, ViewPrompts
from guidance.subjects_sds_configs import SubjectsSDSConfig
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.ms_diffusion import MSDiffusionPrior
from image_tools.personalization.ms_diffusion_loading import load_ms_diffusion
from renderers.boxes import box_masks
from renderers.cameras import Cameras
from renderers.errors import StudioError

__all__ = ["SubjectCondition", "SubjectPrompts", "mask_rectangles"]

MASK_SIZE = (64, 64)
"""Rows and columns to which rectangles are exact."""


@dataclass(frozen=True)
class SubjectCondition:
    """Texts of a batch of views, and the subjects in each."""

    text: ViewCondition
    prior: MSDiffusionPrior
    """Shows each view its subjects; around the prior that guides."""

    def guided_noise(
        self,
        prior: DiffusionPrior,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Guided epsilon with subjects in its conditional half."""
        return self.text.guided_noise(self.prior, latents, t, guidance_scale, rescale=rescale)


class SubjectPrompts:
    """A scene's prompts with subjects in the boxes of its objects."""

    def __init__(
        self,
        config: SubjectsSDSConfig,
        prior: DiffusionPrior,
        scene: ViewPrompts,
        objects: Sequence[LayoutObject],
    ) -> None:
        """Read the subjects.

        Args:
            config: weights, subjects and rule.
            prior: what predicts the noise.
            scene: the prompts of the whole scene.
            objects: at least one.

        Raises:
            StudioError: a subject belongs to no object, or something cannot be read.
        """
        self.config, self.scene, self.prompt = config, scene, scene.prompt
        self.objects = tuple(objects)
        own = config.objects_in([item.prompts.prompt for item in objects])
        if None in own:
            subject = config.tool.subjects[own.index(None)]
            raise StudioError(
                f"The subject '{subject.phrase}' has no object of its own in the layout - expected "
                "one whose prompt has these words. Change the phrase, or add an object."
            )
        counts = [len(subject.images) for subject in config.tool.subjects]
        self._object_of = torch.tensor(own).repeat_interleave(torch.tensor(counts))
        adapter, self._seen = load_ms_diffusion(config.tool, prior)
        self.prior = MSDiffusionPrior(prior, adapter, self._seen.at(adapter), fade=config.tool.fade)

    def at(self, cameras: Cameras) -> SubjectCondition:
        """The texts of each view, and its subjects where their objects are seen.

        Raises:
            UnsupportedModel: if the prompts come with negatives for other views.
        """
        text = self.scene.at(cameras)
        if not isinstance(text, ViewCondition):
            raise UnsupportedModel(
                "Subjects got view prompts of kind perp_neg, whose negatives would show them too. "
                "Expected view_prompts.kind: directional, interpolated or plain."
            )
        masks = box_masks([item.box for item in self.objects], cameras, MASK_SIZE)
        boxes = mask_rectangles(masks, self.config.least_area)[:, self._object_of]
        subjects = self._seen.at(self.prior.adapter, boxes)
        return SubjectCondition(text, self.prior.showing(subjects))


def mask_rectangles(masks: Float[Tensor, "*b h w"], least_area: float) -> Float[Tensor, "*b 4"]:
    """Left, top, right and bottom of what is above 0; all 0 where the mask's mean is too small."""
    bounds = []
    for across in (-2, -1):
        touched = (masks > 0.0).any(dim=across).float()
        count = touched.shape[-1]
        first = touched.argmax(dim=-1)
        last = count - touched.flip(-1).argmax(dim=-1)
        bounds.append((first / count, last / count))
    (left, right), (top, bottom) = bounds
    is_seen = (masks.mean(dim=(-2, -1)) >= max(least_area, 1e-6)).to(masks)
    return torch.stack([left, top, right, bottom], dim=-1).to(masks) * is_seen[..., None]
