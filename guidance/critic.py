"""The critic: a prior adapted by LoRA to what the renders look like (arXiv 2305.16213, section 3).

    min_phi  E || eps_phi(alpha z + sigma eps; y, c, t) - eps ||^2,   t uniform over all T

in the denoiser's own parametrisation (v-targets for a v-model). y is the scene's prompt without
view words, c the camera, a flattened matrix through a class embedding of the critic's own. The
adapter and the embedding are attached inside the critic's calls only, so a prior that shares its
UNet with a critic predicts bit for bit as before.

Following the papers' code, a dropped camera is a vector of zeros; it is dropped per view (the
reference code: per batch). The last layer of the camera embedding starts at zero, so that the
critic starts as the prior. A critic update counts one denoiser evaluation per latent, although its
backward pass costs about two more.

    critic = LoraCritic(prior, CriticConfig(), seed=0)
    text = critic.encode_prompt(["a purple duck"])
    noise_pred = critic.predict_noise(z_t, t, text, camera_vector(cameras.c2w))
    loss = critic.train_step(latents, text, camera_vector(cameras.c2w), generator=generator)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from guidance.critic_configs import CriticConfig
from guidance.same_latents import check_same_latents
from image_tools.configs import PriorConfig
from image_tools.diffusion.camera_embedding import (
    CAMERA_WIDTH,
    camera_embedding_swapped,
    make_camera_embedding,
)
from image_tools.diffusion.conditions import Condition, TextEmbedding, cat_embeddings
from image_tools.diffusion.lora import LoraAdapter
from image_tools.diffusion.parametrization import (
    PredictionType,
    add_noise,
    alpha_sigma,
    classifier_free_guidance,
)
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.recomputation import recomputed_with_operations
from renderers.errors import StudioError

__all__ = ["Critic", "LoraCritic", "training_target"]

FUSED_DEVICES = {"cpu", "cuda"}
PATIENCE = 20
"""Updates in a row whose gradient may not be finite; float16 finds its scale in a few."""


class Critic(Protocol):
    """A model of the renders: what variational rules put in the place of the noise."""

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts as the critic reads them."""
        ...

    def predict_noise(
        self, latents: Tensor, t: Tensor, text: TextEmbedding, camera: Tensor | None
    ) -> Tensor:
        """Epsilon of a noisy render."""
        ...

    def train_step(
        self,
        latents: Tensor,
        text: TextEmbedding,
        camera: Tensor | None,
        *,
        t: Tensor | None = None,
        generator: torch.Generator,
    ) -> float:
        """One update on the latents of renders; returns the loss before it."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Weights and optimiser state by flat name."""
        ...

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""
        ...

    def close(self) -> None:
        """Leave the prior as it was found."""
        ...


class LoraCritic:
    """LoRA and a camera embedding on the prior's own UNet, or on a second prior's."""

    def __init__(self, prior: DiffusionPrior, config: CriticConfig, *, seed: int) -> None:
        """Attach a critic that starts as the prior.

        Args:
            prior: the stage's prior, which makes the latents and counts the evaluations.
            config: settings; with a prior of its own, that one is loaded and adapted.
            seed: of the LoRA's and the embedding's first layers.

        Raises:
            UnsupportedModel: the second prior has other latents or another noise schedule.
        """
        self.config, self.prior = config, prior
        self.host = prior if config.prior is None else _load_host(config.prior, prior)
        generator = torch.Generator().manual_seed(seed)
        self.lora = LoraAdapter(self.host.unet, rank=config.rank, generator=generator)
        self.camera_embedding: nn.Module | None = None
        if config.camera_condition != "none":
            self.camera_embedding = make_camera_embedding(self.host.unet, generator)
        self.parameters = dict(self.lora.parameters)
        if self.camera_embedding is not None:
            named = self.camera_embedding.named_parameters()
            self.parameters |= {f"class_embedding.{name}": value for name, value in named}
        self.updates = 0
        self._half_scale, self._lost = 1.0, 0
        self._optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.host.device.type in FUSED_DEVICES,
        )
        if config.checkpointing:
            unet = self.host.unet
            unet.enable_gradient_checkpointing(recomputed_with_operations(unet))

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbedding:
        """Prompts as the critic's own text encoder reads them."""
        return self.host.encode_prompt(prompts)

    def predict_noise(
        self,
        latents: Float[Tensor, "b c s s"],
        t: Int[Tensor, " b"],
        text: TextEmbedding,
        camera: Float[Tensor, "b 16"] | None,
    ) -> Float[Tensor, "b c s s"]:
        """Epsilon of noisy renders; without guidance unless the config asks for it.

        Args:
            latents: noisy latents.
            t: timestep of each.
            text: one row, or one per latent.
            camera: the flattened matrix of each view; None for unknown cameras (zeros).
        """
        scale = self.config.guidance_scale
        if scale == 1.0:
            return self._predict_noise(latents, t, text, self._camera(camera, latents))
        rows = text.expand(len(latents))
        known = self._camera(camera, latents)
        both = self._predict_noise(
            torch.cat([latents, latents]),
            torch.cat([t, t]),
            cat_embeddings([rows, rows]),
            torch.cat([torch.zeros_like(known), known]),
        )
        unknown_pred, known_pred = both.chunk(2)
        return classifier_free_guidance(unknown_pred, known_pred, scale)

    def train_step(
        self,
        latents: Float[Tensor, "b c s s"],
        text: TextEmbedding,
        camera: Float[Tensor, "b 16"] | None,
        *,
        t: Int[Tensor, " b"] | None = None,
        generator: torch.Generator,
    ) -> float:
        """One AdamW update towards predicting the noise of these renders.

        Args:
            latents: clean latents of renders; no gradient reaches them.
            text: one row, or one per latent.
            camera: the flattened matrix of each view; None for unknown cameras (zeros).
            t: timesteps; drawn uniformly from all of them when not given.
            generator: source of timesteps, noise and dropped cameras.

        Returns:
            The mean squared error in the denoiser's own parametrisation, before the update. An
            update whose gradient is not finite is left out, and in float16 the next one is scaled
            by half as much.

        Raises:
            StudioError: no gradient was finite for a long time.
        """
        latents = latents.detach().float()
        if t is None:
            n = self.host.num_train_timesteps
            t = torch.randint(n, (len(latents),), generator=generator, device=generator.device)
        t = t.to(latents.device)
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
        noise = noise.to(latents)
        alpha, sigma = alpha_sigma(self.host.alphas_cumprod, t, latents)
        z_t = add_noise(latents, noise, alpha, sigma)
        camera = self._drop(self._camera(camera, latents), generator)
        target = training_target(noise, latents, alpha, sigma, self.host.prediction_type)
        with torch.enable_grad(), self._attached():
            output = self._output(z_t, t, text, camera)
            loss = (output - target).square().mean()
            self._update(loss, scale=self._loss_scale(output))
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """Weights, AdamW's moments as ``name/exp_avg`` and so on, and what is counted."""
        moments = {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }
        weights = {name: parameter.detach() for name, parameter in self.parameters.items()}
        counts = {"updates": self.updates, "half_scale": self._half_scale, "lost": self._lost}
        return {**weights, **moments, **{k: torch.tensor(v) for k, v in counts.items()}}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from ``state``, bit for bit.

        Raises:
            StudioError: the tensors are those of another critic.
        """
        for name, parameter in self.parameters.items():
            saved = tensors.get(name)
            if saved is None or saved.shape != parameter.shape:
                found = "absent" if saved is None else f"of shape {tuple(saved.shape)}"
                raise StudioError(
                    f"The saved critic's '{name}' is {found} - expected {tuple(parameter.shape)}. "
                    "It belongs to a critic of another rank or model; start a new run."
                )
            parameter.copy_(saved)
        self.updates = int(tensors["updates"])
        self._half_scale = float(tensors.get("half_scale", 1.0))
        self._lost = int(tensors.get("lost", 0))
        self._optimizer.state.clear()
        for name, parameter in self.parameters.items():
            prefix = f"{name}/"
            moments = {
                key.removeprefix(prefix): value.to(parameter.device, copy=True)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            if moments:
                self._optimizer.state[parameter] = moments

    def close(self) -> None:
        """Take the adapter off the UNet; a second call does nothing."""
        self.lora.remove()
        if self.config.checkpointing:
            self.host.unet.disable_gradient_checkpointing()

    @contextmanager
    def _attached(self) -> Iterator[None]:
        """Inside, the UNet is the critic's."""
        with self.lora.on(), camera_embedding_swapped(self.host.unet, self.camera_embedding):
            yield

    def _predict_noise(
        self, latents: Tensor, t: Tensor, text: TextEmbedding, camera: Tensor | None
    ) -> Tensor:
        with self._attached():
            output = self._output(latents, t, text, camera)
        return self.host.to_noise(output, latents, t)

    def _output(
        self, latents: Tensor, t: Tensor, text: TextEmbedding, camera: Tensor | None
    ) -> Tensor:
        """The attached UNet's output on the latents' device; counted by the stage's prior."""
        device = self.host.device
        condition = Condition(text, None if camera is None else camera.to(device))
        output = self.host.predict_output(latents.to(device), t.to(device), condition)
        if self.host is not self.prior:
            self.prior.denoiser_evaluations += len(latents)
        return output.to(latents.device)

    def _camera(self, camera: Tensor | None, latents: Tensor) -> Tensor | None:
        """The embedding's input; None if the critic has no embedding."""
        if self.camera_embedding is None:
            return None
        if camera is None:
            return latents.new_zeros(len(latents), CAMERA_WIDTH)
        return camera.to(latents)

    def _drop(self, camera: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Zeros for some of the views, so that the zero camera means any view."""
        if camera is None or self.config.camera_dropout == 0.0:
            return camera
        draws = torch.rand(len(camera), generator=generator, device=generator.device)
        dropped = (draws < self.config.camera_dropout).to(camera.device)
        return camera.masked_fill(dropped[:, None], 0.0)

    def _loss_scale(self, output: Tensor) -> float:
        """float16 flushes the gradient of a mean over many numbers to zero; that of a sum fits, or
        that of a part of it if a sum was once too large."""
        is_half = self.host.dtype == torch.float16
        return self._half_scale * output.numel() if is_half else 1.0

    def _update(self, loss: Tensor, *, scale: float) -> None:
        """Only the critic's own parameters are differentiated."""
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(loss * scale, parameters)
        # One look at all largest entries: each look makes the host wait for the device.
        largest = torch.stack(torch._foreach_norm(gradients, ord=math.inf))
        if not torch.isfinite(largest).all():
            self._lose(loss)
            return
        self._lost = 0
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / scale
        self.updates += 1
        warm = min(1.0, self.updates / max(1, self.config.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = warm * self.config.learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _lose(self, loss: Tensor) -> None:
        """Leave an update out, and end when there are only such ones."""
        self._lost += 1
        if self.host.dtype == torch.float16:
            self._half_scale *= 0.5
        if self._lost >= PATIENCE:
            raise StudioError(
                f"The critic's gradient was not finite {self._lost} times in a row, at a loss of "
                f"{float(loss.detach()):g} - expected a critic that learns. Try prior.memory.dtype "
                "bfloat16 or float32, or a lower guidance.critic.learning_rate."
            )


def training_target(
    noise: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, kind: PredictionType
) -> Tensor:
    """What a denoiser of the given kind should put out for ``alpha x0 + sigma noise``."""
    if kind == "epsilon":
        return noise
    return alpha * noise - sigma * x0 if kind == "v_prediction" else x0


def _load_host(config: PriorConfig, prior: DiffusionPrior) -> DiffusionPrior:
    """A second prior that understands the first one's latents."""
    from image_tools.diffusion.loading import load_prior

    host = load_prior(config, prior.device)
    check_same_latents(prior, host)
    return host
