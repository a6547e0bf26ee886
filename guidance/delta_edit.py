"""Edits of a finished scene by its prompt: the delta denoising score in 3D.

Both scenes, the edited one and its frozen original, are rendered from the same cameras, and their
latents get the same noise at the same timestep (Hertz et al., arXiv 2304.07090, Eq. 3):

    g = w(t) M (eps_guided(alpha z + sigma eps; t, y) - eps_guided(alpha z_0 + sigma eps; t, y_0))

with y the scene's prompt and y_0 the original's. What the prior gets wrong about the original it
gets wrong about the edited scene as well, so the difference edits and nothing else: where scenes
and prompts are equal, g is exactly 0. M says where the edit may act (``delta_edit_mask``). Outside
of it the renders may be held at the original's,

    loss += keep / 2 sum over pixels (1 - M) |x - x_0|^2 / B.

With ``attention`` the first prediction shares attention with the second, as in Prompt-to-Prompt.
Words are then paired as in each view's texts (``delta_edit_words``).

    guidance = DeltaEditGuidance(DeltaEditConfig(), prior, prompts, original)
    guided = guidance(output.comp_rgb, cameras, fraction=0.3, generator=generator)
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.delta_edit_configs import DeltaEditConfig
from guidance.delta_edit_mask import build_mask
from guidance.delta_edit_words import ViewSharing
from guidance.gradient import clip_gradient, gradient_loss, gradient_norm, replace_non_finite
from guidance.noising import NoisyLatents, draw_noisy_latents
from guidance.original import Original
from guidance.prompts import ViewCondition, ViewPrompts
from guidance.read_back import read_back_loss
from guidance.schedules import value_at
from guidance.sds import sds_weight
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.dds import (
    DeltaBranch,
    delta_denoising_gradient,
    shared_delta_denoising_gradient,
)
from image_tools.errors import UnsupportedModel
from renderers.cameras import Cameras

__all__ = ["DeltaEditGuidance"]


class DeltaEditGuidance(GuidanceRule):
    """Pulls renders from what the original's prompt says towards what the scene's says."""

    prior: DiffusionPrior

    def __init__(
        self,
        config: DeltaEditConfig,
        prior: DiffusionPrior,
        prompts: ViewPrompts,
        original: Original,
    ) -> None:
        """Edit ``original``; the rule trains nothing.

        Args:
            config: strength, timesteps, and where the edit may act.
            prior: what predicts the noise.
            prompts: what the edited scene shows.
            original: the scene before the edit.

        Raises:
            StudioError: the word that changes is missing, or not in the source prompt.
        """
        self.config, self.prior, self.prompts, self.original = config, prior, prompts, original
        self.mask = build_mask(config.mask, prior, prompts, original)
        self.sharing = None
        if config.attention is not None:
            self.sharing = ViewSharing(config.attention, prior, original.prompts, prompts)

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for a batch of renders; the original is rendered from the same cameras."""
        config, prior = self.config, self.prior
        sources = self.original.views(cameras)
        latents = prior.encode_images(images)
        with torch.no_grad():
            source = prior.encode_images(sources)
            noisy = draw_noisy_latents(
                prior, latents, config.timesteps, fraction=fraction, generator=generator
            )
            delta = self._delta(latents.detach(), source, noisy, cameras)
            mask = self.mask(latents, source, cameras, generator)
            weight = sds_weight(noisy.alpha**2, config.weighting)
            gradient, non_finite = replace_non_finite(weight * mask * delta)
            if config.grad_clip is not None:
                gradient = clip_gradient(gradient, value_at(config.grad_clip, fraction))
            norm = gradient_norm(gradient)
        loss = gradient_loss(latents, gradient)
        keep = value_at(config.keep, fraction)
        if keep > 0.0:
            loss = loss + keep * kept_loss(images, sources, mask)

        def x0() -> Tensor:
            """Where the difference leads: clean latents whose noise was mistaken by it."""
            with torch.no_grad():
                edited = latents.detach() - noisy.sigma / noisy.alpha * mask * delta
                return prior.decode_latents(edited)

        read_back = partial(read_back_loss, prior, images, latents)
        return GuidanceOutput(loss, norm, noisy.t, non_finite, x0, read_back)

    def _delta(
        self,
        latents: Float[Tensor, "b c s s"],
        source: Float[Tensor, "b c s s"],
        noisy: NoisyLatents,
        cameras: Cameras,
    ) -> Float[Tensor, "b c s s"]:
        """The difference of both guided predictions."""
        texts = [prompts.at(cameras) for prompts in (self.prompts, self.original.prompts)]
        if not all(isinstance(text, ViewCondition) for text in texts):
            raise UnsupportedModel(
                "Delta edits got view prompts of kind perp_neg, which have no paired prediction. "
                "Expected view_prompts.kind: directional, interpolated or plain."
            )
        scale = self.config.guidance_scale
        target, before = (
            DeltaBranch(z, text.positive, text.uncond)
            for z, text in zip((latents, source), texts, strict=True)
        )
        if self.sharing is None:
            return delta_denoising_gradient(
                self.prior, target, before, t=noisy.t, noise=noisy.noise, guidance_scale=scale
            )
        delta = torch.zeros_like(latents)
        for rows, sharing in self.sharing.groups(cameras, noisy.t):
            delta[rows] = shared_delta_denoising_gradient(
                sharing,
                _rows_of(target, rows),
                _rows_of(before, rows),
                t=noisy.t[rows],
                noise=noisy.noise[rows],
                guidance_scale=scale,
            )
        return delta


def _rows_of(branch: DeltaBranch, rows: Tensor) -> DeltaBranch:
    """Some views of a branch; its unconditional text is that of all."""
    return DeltaBranch(branch.latents[rows], branch.cond.select(rows), branch.uncond)


def kept_loss(
    images: Float[Tensor, "b h w 3"],
    sources: Float[Tensor, "b h w 3"],
    mask: Float[Tensor, "b 1 s s"],
) -> Float[Tensor, ""]:
    """Half the squared distance to the original outside of the mask, as a mean over views."""
    outside = 1.0 - F.interpolate(mask, images.shape[1:3], mode="nearest").movedim(1, -1)
    return 0.5 * (outside * (images - sources).square()).sum() / len(images)
