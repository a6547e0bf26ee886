"""Real images as starting noise: DDIM inversion, null-text and negative-prompt inversion.

``invert_latents`` runs DDIM backwards, by default with the conditional prediction alone, z_{t-1} to
z_t by epsilon(z_{t-1}, t); it equals diffusers' ``DDIMInverseScheduler`` fed with epsilon. Sampled
with guidance, its end does not come back to the image. Null-text inversion (Mokady et al., arXiv
2211.09794, section 3.2) learns for each step an embedding of "no condition" with which guidance
follows the inverted path:

    min over the embedding of | z*_{t-1} - ddim_step(z, eps_u + s (eps_c - eps_u)) |^2

Negative-prompt inversion (Miyake et al., arXiv 2305.16807) puts the prompt itself in its place,
which needs no optimisation: guidance then has no effect on the image as it is.

Priors return epsilon whatever they predict, so v-prediction needs no care here. Embeddings are
learned in float32, since their errors add up over the steps.

Deviations: learning rate and tolerance are the published ones at 50 steps, and are stretched over
other numbers of steps; each embedding starts as the one before.

    path = invert_latents(prior, prior.encode_images(image), cond, steps=50)
    inverted = null_text_inversion(prior, path, cond, prior.encode_negative([""]))
    prior = InvertedPrior(prior, inverted)  # then sample from inverted.start
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.diffusion.conditions import Condition, TextEmbedding, as_condition
from image_tools.diffusion.modified import ModifiedPrior
from image_tools.diffusion.parametrization import classifier_free_guidance
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import DdimStep, ddim_step, ddim_steps
from image_tools.diffusion.step_clock import StepClock
from image_tools.editing.editing_configs import NullTextConfig
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

__all__ = [
    "Inversion",
    "InvertedPrior",
    "check_inversion_dtype",
    "inverse_ddim_step",
    "invert_latents",
    "negative_prompt_inversion",
    "null_text_inversion",
]


@dataclass(frozen=True)
class Inversion:
    """What brings an image back."""

    start: Float[Tensor, "1 c h w"]
    """Latents of the first timestep of the sampler."""
    unconditions: tuple[TextEmbedding, ...]
    """For each step what guidance leads away from."""
    timesteps: tuple[int, ...]
    """Those of the sampler."""


def inverse_ddim_step(
    latents: Float[Tensor, "b c h w"], noise_pred: Float[Tensor, "b c h w"], step: DdimStep
) -> Float[Tensor, "b c h w"]:
    """From a step's result to its input, were its noise ``noise_pred``; see ``ddim_step``."""
    x0 = (latents - (1.0 - step.alpha_bar_prev) ** 0.5 * noise_pred) / step.alpha_bar_prev**0.5
    if step.clip is not None:
        x0 = x0.clamp(-step.clip, step.clip)
    return step.alpha_bar**0.5 * x0 + (1.0 - step.alpha_bar) ** 0.5 * noise_pred


@torch.no_grad()
def invert_latents(
    prior: NoisePrior,
    latents: Float[Tensor, "b c h w"],
    cond: Condition | TextEmbedding,
    *,
    steps: int,
    uncond: Condition | TextEmbedding | None = None,
    guidance_scale: float = 1.0,
) -> list[Float[Tensor, "b c h w"]]:
    """The path from clean latents to noise: ``steps + 1`` latents, the clean ones first.

    Args:
        prior: predicts the noise.
        latents: clean latents.
        cond: what they show.
        steps: of the sampler that will come back.
        uncond: what guidance leads away from, where there is any.
        guidance_scale: of the predictions; without ``uncond`` it does nothing.
    """
    path, uncond = [latents], cond if uncond is None else uncond
    for step in reversed(ddim_steps(prior, steps)):
        t = torch.full((len(latents),), step.t, device=latents.device)
        noise_pred = prior.guided_noise(path[-1], t, cond, uncond, guidance_scale)
        path.append(inverse_ddim_step(path[-1], noise_pred, step))
    return path


def null_text_inversion(
    prior: NoisePrior,
    path: Sequence[Float[Tensor, "1 c h w"]],
    cond: Condition | TextEmbedding,
    uncond: Condition | TextEmbedding,
    config: NullTextConfig | None = None,
) -> Inversion:
    """Learn what guidance must lead away from, so that it follows a path back.

    Args:
        prior: a float32 model.
        path: of ``invert_latents``, of one image.
        cond: what the image shows.
        uncond: where learning begins, "no condition".
        config: steps, scale and how long to learn.

    Raises:
        UnsupportedModel: if the prior computes in half precision.
        ShapeError: if the path has another number of steps.
    """
    config = config or NullTextConfig()
    check_inversion_dtype(prior)
    _check_path(path, config.steps)
    cond, uncond = as_condition(cond), as_condition(uncond)
    tokens, latents = uncond.text.tokens.detach().float(), path[-1]
    steps, learned = ddim_steps(prior, config.steps), []
    for index, step in enumerate(steps):
        part = index / config.steps
        problem = _Problem(prior, latents, path[-2 - index], cond, uncond, step, config)
        tokens = problem.solve(
            tokens,
            learning_rate=config.learning_rate * (1.0 - index / (2.0 * config.steps)),
            tolerance=config.tolerance + config.tolerance_growth * part,
        )
        learned.append(replace(uncond.text, tokens=tokens))
        with torch.no_grad():
            latents = problem.step_with(tokens)
    return Inversion(path[-1], tuple(learned), tuple(step.t for step in steps))


def check_inversion_dtype(prior: NoisePrior) -> None:
    """Refuse a prior that null-text inversion cannot learn with.

    Raises:
        UnsupportedModel: if it computes in half precision.
    """
    if prior.dtype != torch.float32:
        raise UnsupportedModel(
            f"The prior computes in {str(prior.dtype).removeprefix('torch.')}, too coarse for "
            "null-text inversion. Expected float32: set memory.dtype, or use negative-prompt "
            "inversion."
        )


def negative_prompt_inversion(
    prior: NoisePrior,
    path: Sequence[Float[Tensor, "1 c h w"]],
    cond: Condition | TextEmbedding,
) -> Inversion:
    """The image's own prompt in the place of "no condition", at every step."""
    steps = ddim_steps(prior, len(path) - 1)
    text = as_condition(cond).text
    return Inversion(path[-1], (text,) * len(steps), tuple(step.t for step in steps))


class InvertedPrior(ModifiedPrior):
    """A prior whose guidance leads away from what an inversion found, step by step."""

    def __init__(self, plain: NoisePrior, inversion: Inversion) -> None:
        """Wrap a prior; whatever negative prompt a sampler gives is replaced. Tokens that a tool
        around this one has put behind it stay."""
        super().__init__(plain)
        self.inversion = inversion
        self.clock = StepClock(inversion.timesteps)

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition itself: what is replaced depends on the step."""
        return condition

    def guided_noise(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        cond: Condition | TextEmbedding,
        uncond: Condition | TextEmbedding,
        guidance_scale: float,
        *,
        rescale: float = 0.0,
    ) -> Float[Tensor, "b c h w"]:
        """Guidance with the step's own unconditional embedding.

        Raises:
            ShapeError: if the text is shorter than what was learned.
        """
        learned = self.inversion.unconditions[self.clock.step(t)].to(latents.device)
        given = as_condition(uncond).expand(len(latents))
        text = _with_first_tokens(given.text, learned.expand(len(latents)))
        replaced = replace(given, text=text)
        return super().guided_noise(latents, t, cond, replaced, guidance_scale, rescale=rescale)


@dataclass(frozen=True)
class _Problem:
    """One step of null-text inversion."""

    prior: NoisePrior
    latents: Float[Tensor, "1 c h w"]
    goal: Float[Tensor, "1 c h w"]
    cond: Condition
    uncond: Condition
    step: DdimStep
    config: NullTextConfig

    def solve(
        self, tokens: Float[Tensor, "1 length d"], *, learning_rate: float, tolerance: float
    ) -> Float[Tensor, "1 length d"]:
        """Learned tokens, starting from ``tokens``."""
        tokens = tokens.clone().requires_grad_()
        optimizer = torch.optim.Adam([tokens], lr=learning_rate)
        with torch.no_grad():
            noise_cond = self._noise(self.cond)
        for _ in range(self.config.inner_steps):
            loss = (self._result(tokens, noise_cond) - self.goal).square().mean()
            (gradient,) = torch.autograd.grad(loss, [tokens])
            tokens.grad = gradient
            optimizer.step()
            if loss.item() < tolerance:
                break
        return tokens.detach()

    def step_with(self, tokens: Float[Tensor, "1 length d"]) -> Float[Tensor, "1 c h w"]:
        """The sampler's step."""
        return self._result(tokens, self._noise(self.cond))

    def _result(self, tokens: Tensor, noise_cond: Tensor) -> Tensor:
        told = replace(self.uncond, text=replace(self.uncond.text, tokens=tokens))
        guided = classifier_free_guidance(self._noise(told), noise_cond, self.config.guidance_scale)
        return ddim_step(self.latents, guided, self.step, eta=0.0, noise=None)

    def _noise(self, condition: Condition) -> Tensor:
        t = torch.full((1,), self.step.t, device=self.latents.device)
        return self.prior.guided_noise(self.latents, t, condition, condition, 1.0)


def _with_first_tokens(given: TextEmbedding, learned: TextEmbedding) -> TextEmbedding:
    """What was learned, and behind it the tokens that only the given text has."""
    length, found = learned.tokens.shape[1], given.tokens.shape[1]
    if found < length:
        raise ShapeError(
            f"The negative prompt has {found} tokens and the inversion {length} - expected no "
            "fewer. Encode prompts with the prior that was inverted."
        )
    behind = given.tokens[:, length:].to(learned.tokens)
    return replace(learned, tokens=torch.cat([learned.tokens, behind], dim=1))


def _check_path(path: Sequence[Tensor], steps: int) -> None:
    if len(path) != steps + 1 or len(path[0]) != 1:
        raise ShapeError(
            f"The path has {len(path) - 1} steps of {len(path[0])} images, expected {steps} steps "
            "of one image. Invert one image with the same number of steps."
        )
