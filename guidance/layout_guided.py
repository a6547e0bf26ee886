"""Score distillation with a layout: what the prior sees of each object is moved into its box.

The 3D form of self-guidance (Epstein et al., arXiv 2306.00986) with targets from 3D boxes, which
are projected into each view, the nearest first:

    eps = eps_guided(z_t) + v sigma_t grad_z g(z_t, t),      g of ``layout_guided_energy``

for the views with t of at least ``min_t``. The energy reads the attention of the conditional
prediction to the words that name each object in the scene's prompt. Attention runs in the prior's
own number format; its maps are made float32 before g is formed, and g is scaled by 1000 against
underflow on the way back. It is SDS with prompts that know where things are, so the
rule is ``SDSGuidance`` itself; views that are not moved are plain SDS bit for bit.

    prompts = LayoutPrompts(config, prior, prompts, objects)
    guidance = SDSGuidance(config.sds, prior, prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.layout_guided_configs import LayoutGuidedConfig
from guidance.layout_guided_energy import WordAttention, layout_energy
from guidance.layout_parts import (
    LayoutObject,
    ObjectTokens,
    check_word_places,
    object_tokens,
)
from guidance.perp_neg import PerpNegCondition
from guidance.prompts import ViewCondition, ViewPrompts
from guidance.relation_prompts import RelationPrompts
from image_tools.diffusion.attention import attention_operations
from image_tools.diffusion.parametrization import alpha_sigma
from image_tools.diffusion.prior import DiffusionPrior
from renderers.boxes import box_masks
from renderers.cameras import Cameras

__all__ = ["LayoutCondition", "LayoutPrompts"]

LOSS_SCALE = 1000.0
MASK_SIZE = (32, 32)
"""Rows and columns of the boxes' masks; layers shrink them by area to their own size."""


@dataclass(frozen=True)
class LayoutCondition:
    """Texts of a batch of views, and where in each view its objects belong."""

    text: ViewCondition | PerpNegCondition
    masks: Float[Tensor, "b k h w"]
    tokens: tuple[ObjectTokens, ...]
    """Places of each object's words among the tokens of each view's text."""
    config: LayoutGuidedConfig

    def guided_noise(
        self,
        prior: DiffusionPrior,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """Guided epsilon, and the gradient of the layout's energy in views that are moved."""
        noise = self.text.guided_noise(prior, latents, t, guidance_scale, rescale=rescale)
        moved = (t >= self.config.min_t * len(prior.alphas_cumprod)).nonzero()[:, 0]
        if len(moved) == 0:
            return noise
        _, sigma = alpha_sigma(prior.alphas_cumprod, t[moved], latents)
        step = self.config.scale * sigma * self.energy_gradient(prior, latents, t, moved)
        return noise.index_add(0, moved, step.to(noise))

    def energy_gradient(
        self,
        prior: DiffusionPrior,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        rows: Int[Tensor, " moved"],
    ) -> Float[Tensor, "moved c s s"]:
        """grad_z g of some of the views, from a call for the conditional prediction alone."""
        watcher = WordAttention(self.config.levels)
        with torch.enable_grad(), attention_operations(prior.unet, [watcher]):
            z_t = latents[rows].detach().requires_grad_()
            prior.predict_output(z_t, t[rows], self.text.positive.select(rows))
            tokens = [self.tokens[row] for row in rows.tolist()]
            maps = watcher.seen()  # where the prior is, which may be another device
            masks = self.masks[rows.to(self.masks.device)].to(maps[0].device, z_t.dtype)
            energy = layout_energy(self.config.terms, maps, tokens, masks)
            (gradient,) = torch.autograd.grad(LOSS_SCALE * energy.sum(), [z_t])
        return gradient / LOSS_SCALE


class LayoutPrompts:
    """A scene's prompts with the places of its objects."""

    def __init__(
        self,
        config: LayoutGuidedConfig,
        prior: DiffusionPrior,
        scene: ViewPrompts,
        objects: Sequence[LayoutObject],
    ) -> None:
        """Find the objects' words in the scene's prompt.

        Args:
            config: terms, strength and layers.
            prior: what predicts the noise.
            scene: the prompts of the whole scene.
            objects: at least one.

        Raises:
            StudioError: an object's words are not in the scene's prompt.
        """
        self.config, self.scene, self.prompt = config, scene, scene.prompt
        self.objects = tuple(objects)
        check_word_places(scene)
        texts = scene.texts if isinstance(scene, RelationPrompts) else (scene.prompt,)
        self.tokens = tuple(object_tokens(prior, text, objects) for text in texts)

    def at(self, cameras: Cameras) -> LayoutCondition:
        """The texts of each view, and where its objects belong."""
        masks = box_masks([item.box for item in self.objects], cameras, MASK_SIZE)
        rows = [0] * len(masks)
        if isinstance(self.scene, RelationPrompts):
            rows = self.scene.rows_at(cameras).tolist()
        tokens = tuple(self.tokens[row] for row in rows)
        return LayoutCondition(self.scene.at(cameras), masks, tokens, self.config)
