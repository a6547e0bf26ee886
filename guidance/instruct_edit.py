"""Edits of a finished scene by an instruction, as score distillation (InstructPix2Pix as prior).

    g = w(t) (eps~ - eps)
    eps~ = e(0, 0) + s_I (e(c_I, 0) - e(0, 0)) + s_T (e(c_I, c_T) - e(c_I, 0))

e sees the noisy render, c_I the original from the same camera and c_T the instruction (arXiv
2211.09800, Eq. 3; in 3D as threestudio has it). Two scales say how much of the original stays
and how far the instruction goes. The scene and the original start equal and drift apart only as far
as the two predictions agree to.

    guidance = InstructSDSGuidance(config, prior, prompts, original)
    guided = guidance(output.comp_rgb, cameras, fraction=0.3, generator=generator)
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.base import GuidanceOutput, GuidanceRule
from guidance.configs import SDSConfig
from guidance.instruct_edit_configs import EditModelConfig, InstructSDSConfig
from guidance.original import Original
from guidance.prompts import ViewPrompts
from guidance.sds import SDSGuidance
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.edit_weights import read_edit_unet
from image_tools.editing.instruct_pix2pix import InstructPix2PixPrior
from image_tools.pocket.paths import adapter_path
from renderers.cameras import Cameras

__all__ = ["InstructSDSGuidance", "count_evaluations", "edit_prior"]


class InstructSDSGuidance(GuidanceRule):
    """SDS with a prior that sees the original and reads the instruction."""

    prior: InstructPix2PixPrior

    def __init__(
        self,
        config: InstructSDSConfig,
        prior: DiffusionPrior,
        prompts: ViewPrompts,
        original: Original,
    ) -> None:
        """Read the edit model and build the rule around it.

        Args:
            config: edit model and rule.
            prior: what the edit model was trained from.
            prompts: the instruction; the negative prompt is usually empty.
            original: the scene that is edited.

        Raises:
            WeightsMissing: the edit model is not there.
            UnsupportedModel: it takes no image, or belongs to another kind of prior.
        """
        self.config, self.original = config, original
        self.prior = edit_prior(prior, config.model)
        rule = SDSConfig(
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            weighting=config.weighting,
            timesteps=config.timesteps,
            grad_clip=config.grad_clip,
        )
        self.rule = SDSGuidance(rule, self.prior, prompts)

    def __call__(
        self,
        images: Float[Tensor, "b h w 3"],
        cameras: Cameras,
        *,
        fraction: float,
        generator: torch.Generator,
    ) -> GuidanceOutput:
        """Guidance for renders beside the original from the same cameras."""
        self.prior.show(self.original.views(cameras))
        output = self.rule(images, cameras, fraction=fraction, generator=generator)
        count_evaluations(self.prior)
        return output


def edit_prior(prior: DiffusionPrior, config: EditModelConfig) -> InstructPix2PixPrior:
    """A prior with the edit model in the place of its denoiser, as soon as it is shown an image.

    Raises:
        WeightsMissing: the edit model is not there.
        UnsupportedModel: it takes no image, or belongs to another kind of prior.
    """
    path = adapter_path(config.weights, role="edit model")
    settings = None if config.settings is None else Path(config.settings)
    unet = read_edit_unet(path, settings, prior.dtype).to(prior.device)
    return InstructPix2PixPrior(
        prior, unet, image_scale=config.image_scale, condition_latents=config.condition_latents
    )


def count_evaluations(prior: InstructPix2PixPrior) -> None:
    """Add the edit model's evaluations to those of the stage's prior, where a run counts them."""
    prior.plain.denoiser_evaluations += prior.editor.denoiser_evaluations
    prior.editor.denoiser_evaluations = 0
