"""A 2D diffusion prior: VAE, text encoders, denoiser and noise schedule behind one object.

Everything that makes images or guides a 3D scene talks to this. It predicts epsilon whatever the
denoiser's own parametrisation, and guides with ``eps_u + s (eps_c - eps_u)`` everywhere. Latents
are scaled as the denoiser was trained, from the mean of the VAE's posterior: a draw would only add
noise to the gradient.

    prior = load_prior(PocketPriorConfig(), torch.device("cpu"))
    cond, uncond = prior.encode_prompt(["a purple duck"]), prior.encode_negative([""])
    noise_pred = prior.guided_noise(latents, t, cond, uncond, 7.5)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.configs import AestheticsConfig
from image_tools.diffusion.additions import DenoiserCall
from image_tools.diffusion.attention import attention_operations, batch_roles
from image_tools.diffusion.camera_embedding import camera_embedding_off, has_camera_embedding
from image_tools.diffusion.conditions import (
    Condition,
    TextEmbedding,
    as_condition,
    cat_conditions,
    cat_embeddings,
    size_conditions,
)
from image_tools.diffusion.parametrization import (
    alpha_sigma,
    classifier_free_guidance,
    noise_schedule,
    output_to_noise,
    rescale_guidance,
    x0_from_noise,
)
from image_tools.diffusion.precision import full_precision
from image_tools.diffusion.prompt_cache import PromptCache
from image_tools.diffusion.stock_rules import refuse_guidance_embedding
from image_tools.diffusion.text import TextStack
from image_tools.errors import UnsupportedModel
from renderers.cameras import Cameras
from renderers.errors import check_shape

__all__ = ["DiffusionPrior", "PriorParts"]


@dataclass(frozen=True)
class PriorParts:
    """The modules and settings a prior is made of."""

    unet: torch.nn.Module
    """A diffusers UNet2DConditionModel."""
    vae: torch.nn.Module
    """A diffusers AutoencoderKL."""
    text: TextStack
    """Tokenizers and text encoders."""
    scheduler_config: Mapping[str, Any]
    """Configuration of a stock scheduler: betas and prediction type."""
    fingerprint: str
    """Hash of configuration and weights; equal for equal models only."""
    zero_negative: bool = False
    """Whether an empty negative prompt is a zero embedding (SDXL) instead of an encoded ''."""
    aesthetics: AestheticsConfig | None = None
    """Quality scores, for a model that is told them (SDXL refiners) and no other."""


class DiffusionPrior:
    """A frozen latent diffusion model of the Stable Diffusion family.

    Images, latents and timesteps may be on any device: each call brings them to the prior's own
    and its result back to theirs, gradients included.
    """

    def __init__(
        self,
        parts: PriorParts,
        *,
        prompt_cache: PromptCache | None = None,
        keep_text_encoder: bool = True,
    ) -> None:
        self.unet = parts.unet.eval().requires_grad_(False)
        self.vae = parts.vae.eval().requires_grad_(False)
        self.text = parts.text
        self.scheduler_config = dict(parts.scheduler_config)
        self.fingerprint_parts: dict[str, Callable[[], str]] = {}
        """Hashes of what is attached to the model, by tool; an empty one counts as nothing."""
        self.zero_negative = parts.zero_negative
        self.aesthetics = parts.aesthetics
        self.prediction_type = self.scheduler_config.get("prediction_type", "epsilon")
        self.alphas_cumprod = noise_schedule(self.scheduler_config).to(self.device)
        self.denoiser_evaluations = 0
        """Latents sent through the denoiser so far: what methods are compared by."""
        self._own_fingerprint = parts.fingerprint
        self.prompt_cache = prompt_cache
        self.keeps_text_encoder = keep_text_encoder
        self._encoded: dict[tuple[str, str], TextEmbedding] = {}
        self._refuse_unknown_designs()

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the denoiser; latents and predictions are float32 outside of it."""
        return next(self.unet.parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """Hash of the model and of everything attached to it at the moment."""
        parts = [(name, part()) for name, part in sorted(self.fingerprint_parts.items())]
        parts = [f"{name}={value}" for name, value in parts if value]
        if not parts:
            return self._own_fingerprint
        return hashlib.sha256("\0".join([self._own_fingerprint, *parts]).encode()).hexdigest()[:32]

    @property
    def num_train_timesteps(self) -> int:
        """Number of timesteps T; ``t`` goes from 0 to T - 1."""
        return self.alphas_cumprod.shape[0]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.unet.config.in_channels

    @property
    def latent_size(self) -> int:
        """Rows and columns of the latents the denoiser was trained on."""
        return self.unet.config.sample_size

    @property
    def image_size(self) -> int:
        """Rows and columns in pixels of the images the prior was trained on."""
        return self.latent_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels to which images are resized before they are encoded."""
        return self.image_size, self.image_size

    def encode_images(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b c s s"]:
        """Images in 0..1 to scaled latents, resized to ``image_hw`` first. Differentiable.

        Raises:
            ShapeError: if ``images`` is not [b, h, w, 3].
        """
        return self.encode_posterior(images)[0]

    def encode_posterior(
        self, images: Float[Tensor, "b h w 3"]
    ) -> tuple[Float[Tensor, "b c s s"], Float[Tensor, "b c s s"]]:
        """Mean and standard deviation of images' scaled latents, for trainers that draw them.

        Raises:
            ShapeError: if ``images`` is not [b, h, w, 3].
        """
        check_shape("images", images, "B H W 3")
        pixels = images.movedim(-1, 1)
        size = self.image_hw
        if pixels.shape[-2:] != size:
            shrinks = pixels.shape[-1] > size[1] or pixels.shape[-2] > size[0]
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=shrinks)
        pixels = pixels.to(self.device, self.vae.dtype) * 2.0 - 1.0
        with full_precision(self.device):
            posterior = self.vae.encode(pixels).latent_dist
        mean = posterior.mean.to(images)
        shift, scale = self._latent_shift_scale(mean)
        return (mean - shift) * scale, posterior.std.to(images) * scale

    def decode_latents(self, latents: Float[Tensor, "b c s s"]) -> Float[Tensor, "b h w 3"]:
        """Scaled latents to images in 0..1. Differentiable up to the final clamp."""
        shift, scale = self._latent_shift_scale(latents)
        unscaled = (latents / scale + shift).to(self.device, self.vae.dtype)
        with full_precision(self.device):
            pixels = self.vae.decode(unscaled).sample
        return (pixels.to(latents) / 2.0 + 0.5).clamp(0.0, 1.0).movedim(1, -1)

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts to frozen text embeddings, from memory or disk where they are known.

        Trainers that change the encoders use ``self.text.encode``, which keeps nothing.
        """
        if not prompts:
            raise ValueError("encode_prompt got no prompts. Give at least one.")
        rows = [self._encode_one(prompt) for prompt in prompts]
        if not self.keeps_text_encoder:
            self.text.drop()
        text = cat_embeddings(rows)
        return text if self.aesthetics is None else text.with_aesthetic(self.aesthetics.positive)

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """Negative prompts; an empty one is the model's own 'no condition'."""
        text = self.encode_prompt(prompts)
        if self.aesthetics is not None:
            text = text.with_aesthetic(self.aesthetics.negative)
        return self.silenced(text, prompts)

    def silenced(self, text: TextEmbedding, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts' embeddings with the model's own 'no condition' in the rows of empty ones."""
        if not self.zero_negative:
            return text
        said = torch.tensor([bool(prompt) for prompt in prompts], device=self.device)
        pooled = None if text.pooled is None else text.pooled * said[:, None]
        return replace(text, tokens=text.tokens * said[:, None, None], pooled=pooled)

    def pin_text_encoder(self) -> None:
        """Keep the text encoders in memory: a tool changed them, which their files do not know."""
        self.keeps_text_encoder = True

    def see_cameras(self, cameras: Cameras) -> None:
        """Be told of the cameras of a 3D step, one for each image, which tools around may need."""

    def predict_output(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """The denoiser's output in its own parametrisation, in the latents' number format.

        Without ``class_labels`` a camera embedding is left out: the plain model predicts.
        """
        if as_condition(condition).class_labels is None:
            with camera_embedding_off(self.unet):
                return self._denoise(latents, t, as_condition(condition))
        return self._denoise(latents, t, as_condition(condition))

    def to_noise(
        self, output: Float[Tensor, "b c s s"], latents: Tensor, t: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c s s"]:
        """Epsilon from the denoiser's output."""
        alpha, sigma = alpha_sigma(self.alphas_cumprod, t, latents)
        return output_to_noise(output, latents, alpha, sigma, self.prediction_type)

    def predict_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c s s"]:
        """Epsilon, whatever the denoiser's own parametrisation."""
        return self.to_noise(self.predict_output(latents, t, condition), latents, t)

    def guided_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c s s"]:
        """``eps_u + s (eps_c - eps_u)`` from one denoiser call on [uncond, cond].

        A scale of 1 is the conditional prediction and needs no unconditional half. ``rescale`` acts
        on the denoiser's own output, as arXiv 2305.08891 and the stock pipelines have it.
        """
        if guidance_scale == 1.0:
            return self.predict_noise(latents, t, cond)
        batch = latents.shape[0]
        pair = [as_condition(uncond).expand(batch), as_condition(cond).expand(batch)]
        output = self.predict_output(
            torch.cat([latents, latents]), torch.cat([t, t]), cat_conditions(pair)
        )
        out_uncond, out_cond = output.chunk(2)
        guided = classifier_free_guidance(out_uncond, out_cond, guidance_scale)
        if rescale > 0.0:
            guided = rescale_guidance(guided, out_cond, rescale)
        return self.to_noise(guided, latents, t)

    def predict_x0(
        self, latents: Float[Tensor, "b c s s"], t: Int[Tensor, " b"], noise_pred: Tensor
    ) -> Float[Tensor, "b c s s"]:
        """Clean latents that the noise prediction implies: ``(z_t - sigma eps) / alpha``."""
        alpha, sigma = alpha_sigma(self.alphas_cumprod, t, latents)
        return x0_from_noise(noise_pred, latents, alpha, sigma)

    def added_conditions(self, text: TextEmbedding) -> dict[str, Tensor] | None:
        """SDXL's pooled text, sizes and scores.

        Raises:
            UnsupportedModel: the model's index and its denoiser disagree about the scores.
        """
        unet = self.unet.config
        if unet.addition_embed_type != "text_time":
            return None
        ids = size_conditions(text, self.image_hw)
        given = text.pooled.shape[1] + ids.shape[1] * unet.addition_time_embed_dim
        if given != unet.projection_class_embeddings_input_dim:
            told = "with" if text.aesthetic is not None else "without"
            raise UnsupportedModel(
                f"The denoiser wants {unet.projection_class_embeddings_input_dim} numbers beside "
                f"the text, and its text encoder and sizes {told} a quality score make {given}. "
                "Check requires_aesthetics_score in model_index.json and the second text encoder."
            )
        return {"text_embeds": text.pooled, "time_ids": ids}

    def _denoise(self, latents: Tensor, t: Tensor, condition: Condition) -> Tensor:
        condition = condition.expand(latents.shape[0])
        text, labels = condition.text.to(self.device, self.dtype), condition.class_labels
        if labels is not None:
            if not has_camera_embedding(self.unet):
                raise UnsupportedModel(
                    f"The condition has class labels (a camera, {list(labels.shape)}), and the "
                    "denoiser has no class embedding. Use a multi-view prior, or give none."
                )
            labels = labels.to(next(self.unet.class_embedding.parameters()))
        self.denoiser_evaluations += latents.shape[0]
        added = self.added_conditions(text)
        sample = latents.to(self.device, self.dtype)
        call = DenoiserCall(sample, t.to(self.device), text.tokens, labels, added)
        for addition in condition.additions:
            call = addition.apply(call)
        changed = attention_operations(self.unet, call.operations)
        with changed if call.operations else nullcontext(), batch_roles(self.unet, condition.roles):
            output = self.unet(
                call.sample,
                call.t,
                encoder_hidden_states=call.tokens,
                class_labels=call.class_labels,
                added_cond_kwargs=call.added,
                down_block_additional_residuals=call.down or None,
                mid_block_additional_residual=call.mid,
                return_dict=False,
            )[0]
        return output.to(latents)

    def _encode_one(self, prompt: str) -> TextEmbedding:
        fingerprint, cache = self.fingerprint, self.prompt_cache
        key = (fingerprint, prompt)
        if key in self._encoded:
            return self._encoded[key]
        embedding = cache.read(fingerprint, prompt) if cache else None
        if embedding is None:
            with torch.no_grad():
                embedding = self.text.encode([prompt])
            if cache:
                cache.write(fingerprint, prompt, embedding)
        self._encoded[key] = embedding.to(self.device)
        return self._encoded[key]

    def _latent_shift_scale(self, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        config = self.vae.config
        scale = config.scaling_factor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return config.get("shift_factor") or 0.0, scale
        mean = latents.new_tensor(mean).reshape(1, -1, 1, 1)
        return mean, scale / latents.new_tensor(std).reshape(1, -1, 1, 1)

    def _refuse_unknown_designs(self) -> None:
        unet = self.unet.config
        if unet.in_channels != self.vae.config.latent_channels:
            raise UnsupportedModel(
                f"The denoiser takes {unet.in_channels} channels, the VAE makes "
                f"{self.vae.config.latent_channels}. Expected a text-to-image model; inpainting, "
                "depth and edit models need their own tool."
            )
        if unet.addition_embed_type not in (None, "text_time"):
            raise UnsupportedModel(
                f"The denoiser wants '{unet.addition_embed_type}' conditions. Expected Stable "
                "Diffusion 1.x, 2.x or SDXL."
            )
        refuse_guidance_embedding(self.unet)
        if not isinstance(unet.sample_size, int):
            raise UnsupportedModel(
                f"The denoiser's sample_size is {unet.sample_size}. "
                "Expected one number, for square images."
            )
