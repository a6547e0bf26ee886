"""Score distillation by regions: each object of a layout is told its own prompt, where it is seen.

The 3D form of RPG (Yang et al., arXiv 2401.11708; ``image_tools.control.regional``). In each view
the boxes of the layout are projected, the nearest box first, and the object's prompt speaks in the
pixels where its box is seen, with a share of the scene's prompt; the scene's prompt speaks alone in
all others:

    g = w(t) (eps_guided(z_t; m_1, c_1, ..., m_K, c_K, c_scene) - eps),   m_k the seen part of box k

It is SDS with prompts that know where things are, so the rule is ``SDSGuidance`` itself. Words for
the view are added to each object's prompt as to the scene's.

    prompts = RegionalPrompts(config, prior, prompts, objects)
    guidance = SDSGuidance(config.sds, prior, prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.layout_parts import LayoutObject
from guidance.prompts import ViewCondition, ViewPrompts
from guidance.regional_sds_configs import RegionalSDSConfig
from image_tools.control.regional import RegionalPrior
from image_tools.control.regional_configs import RegionalConfig, RegionConfig
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from renderers.boxes import box_masks
from renderers.cameras import Cameras

__all__ = ["RegionalCondition", "RegionalPrompts"]

MASK_SIZE = (64, 64)
"""Rows and columns of the regions; layers shrink them by area to their own size."""


@dataclass(frozen=True)
class RegionalCondition:
    """Texts of a batch of views, and where in each view they hold."""

    text: ViewCondition
    """The scene's tokens, followed by each object's."""
    masks: Float[Tensor, "b k h w"]
    """Where each object is seen."""
    prior: RegionalPrior
    """Composes them; around the prior that guides."""

    def guided_noise(
        self,
        prior: NoisePrior,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Guided epsilon, composed by region in both halves of guidance."""
        return self.text.guided_noise(
            self.prior.showing(self.masks), latents, t, guidance_scale, rescale=rescale
        )


class RegionalPrompts:
    """A scene's prompts with those of its objects."""

    def __init__(
        self,
        config: RegionalSDSConfig,
        prior: NoisePrior,
        scene: ViewPrompts,
        objects: Sequence[LayoutObject],
    ) -> None:
        """Speak of ``objects`` where they are seen.

        Args:
            config: shares and mode.
            prior: what predicts the noise.
            scene: the prompts of the whole scene.
            objects: at least one.
        """
        self.scene, self.objects, self.prompt = scene, tuple(objects), scene.prompt
        plan = RegionalConfig(
            ratio=",".join("1" * len(objects)),  # the boxes' masks take its place
            regions=tuple(RegionConfig(item.prompts.prompt) for item in objects),
            base_ratio=config.base_ratio,
            mode=config.mode,
        )
        nowhere = torch.zeros(len(objects), *MASK_SIZE)
        self.prior = RegionalPrior(prior, plan, masks=nowhere)

    def at(self, cameras: Cameras) -> RegionalCondition | ViewCondition:
        """The texts of each view, and where they hold; the scene's alone where beta is 1.

        Raises:
            UnsupportedModel: if the prompts come with negatives for other views.
        """
        texts = [
            prompts.at(cameras) for prompts in (self.scene, *(o.prompts for o in self.objects))
        ]
        if not all(isinstance(text, ViewCondition) for text in texts):
            raise UnsupportedModel(
                "Regional prompts got view prompts of kind perp_neg, whose negatives have no "
                "place. Expected view_prompts.kind: directional, interpolated or plain."
            )
        if not self.prior.is_on:
            return texts[0]
        joined = ViewCondition(
            _side_by_side([text.positive for text in texts]),
            _side_by_side([text.uncond for text in texts]),
        )
        masks = box_masks([item.box for item in self.objects], cameras, MASK_SIZE, samples=1)
        return RegionalCondition(joined, masks, self.prior)


def _side_by_side(texts: Sequence[TextEmbedding]) -> TextEmbedding:
    """Tokens of several prompts in one row; pooled vectors are the first's."""
    return replace(texts[0], tokens=torch.cat([text.tokens for text in texts], dim=1))
