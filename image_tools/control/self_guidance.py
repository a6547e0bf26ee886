"""Diffusion self-guidance (Epstein et al., arXiv 2306.00986): edits by what the denoiser sees.

    eps = eps_guided + v sigma_t grad_z g(z_t, t)                                    (Eq. 2)

g compares where things are and what they look like (``self_guidance_terms``) with a reference: an
image sampled before, or a real image, noised to the same timestep. The prior may be any whose
conditional half is one call of the denoiser, so not regions in mode latent; only the gradient with
respect to the latents is computed. Attention runs in the prior's own number format; its maps are
made float32 before g is formed, and g is scaled by 1000 against underflow on the way back. Steps
that are off, and a scale of 0, are the plain prior bit for bit.

Deviation: guidance is of ``eps_u + s (eps_c - eps_u)``, the paper's s is one smaller.

    config = SelfGuidanceConfig("a red duck on grass", (MoveConfig(("duck",), (0.25, 0.0)),))
    recorder = ReferenceRecorder(prior, config)
    sample_images(recorder, [config.prompt], generators=[seeded()])
    guided = SelfGuidedPrior(prior, config, recorder.reference)
    images = sample_images(guided, [config.prompt], generators=[seeded()])
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from image_tools.control.regional import latent_regions_of
from image_tools.control.self_guidance_configs import SelfGuidanceConfig
from image_tools.control.self_guidance_terms import Observed, edit_terms, energy
from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionOperation,
    attention_operations,
)
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.modified import ModifiedPrior
from image_tools.diffusion.parametrization import add_noise, alpha_sigma
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps
from image_tools.diffusion.step_clock import StepClock
from image_tools.editing.align import tokenize_prompt
from image_tools.errors import UnsupportedModel
from renderers.errors import StudioError

__all__ = [
    "Reference",
    "ReferenceRecorder",
    "SelfGuidedPrior",
    "active_steps",
    "reference_of_latents",
]

LOSS_SCALE = 1000.0


@dataclass
class Reference:
    """What the denoiser saw of one image, for each guided step."""

    prompt: str
    steps: dict[int, Observed] = field(default_factory=dict)
    """On the CPU."""

    def at(self, step: int) -> Observed:
        """What was seen at a step.

        Raises:
            StudioError: if nothing was recorded there.
        """
        if step not in self.steps:
            raise StudioError(
                f"The reference has no step {step} - expected all guided steps. Record it with "
                "the same number of steps and to the end."
            )
        return self.steps[step]


def active_steps(config: SelfGuidanceConfig) -> frozenset[int]:
    """Steps that are guided: all of the first, every second of those in the middle, no last."""
    first = round(config.full_steps * config.steps)
    end = min(first + round(config.alternating_steps * config.steps), config.steps)
    return frozenset((*range(first), *range(first, end, 2)))


class _Watching(ModifiedPrior):
    """A prior whose conditional attention and features can be looked at in guided steps."""

    def __init__(self, plain: NoisePrior, config: SelfGuidanceConfig) -> None:
        super().__init__(plain)
        self.config = config
        self.clock = StepClock([step.t for step in ddim_steps(plain, config.steps)])
        self.active = active_steps(config)
        _check_layers(plain.unet, config)
        self._part = _part_of(plain.unet, config.features)

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with roles."""
        role = "cond" if is_cond else "uncond"
        return replace(condition.expand(rows), roles=(role,) * rows)

    def predict_output(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c h w"]:
        """The plain prior's: self-guidance is a part of guidance."""
        return self.plain.predict_output(latents, t, condition)

    @contextmanager
    def watching(self, step: int) -> Iterator[_Watcher]:
        """Inside, denoiser calls are seen.

        Raises:
            UnsupportedModel: the prior calls its denoiser for each region apart.
        """
        if latent_regions_of(self.plain) is not None:
            raise UnsupportedModel(
                "Self-guidance got regions of mode latent, which call the denoiser for each region "
                "apart - expected one call, whose attention says where things are. Set the "
                "regions' mode to attn_crop or attn_resize."
            )
        watcher = _Watcher(self.config.levels)
        with attention_operations(self.unet, [watcher], step=step) as hub:
            hook = self._part.register_forward_hook(
                lambda _module, _given, output: watcher.see_features(hub, output)
            )
            try:
                yield watcher
            finally:
                hook.remove()


class ReferenceRecorder(_Watching):
    """The plain prior, which keeps what it sees of the first image of each batch."""

    def __init__(self, plain: NoisePrior, config: SelfGuidanceConfig) -> None:
        """Record for ``config``.

        Raises:
            UnsupportedModel: the denoiser has no such layers or features.
        """
        super().__init__(plain, config)
        self.reference = Reference(config.reference_prompt or config.prompt)

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
        """The plain prediction."""
        step = self.clock.step(t)
        if step not in self.active:
            return self.plain.guided_noise(
                latents, t, cond, uncond, guidance_scale, rescale=rescale
            )
        with self.watching(step) as watcher:
            noise = super().guided_noise(latents, t, cond, uncond, guidance_scale, rescale=rescale)
        seen = watcher.observed()[0]
        self.reference.steps[step] = Observed(
            tuple(m.detach().cpu() for m in seen.maps), seen.features.detach().cpu()
        )
        return noise


class SelfGuidedPrior(_Watching):
    """A prior that moves its images towards what the edits ask for."""

    def __init__(self, plain: NoisePrior, config: SelfGuidanceConfig, reference: Reference) -> None:
        """Guide by a reference.

        Args:
            plain: the prior.
            config: edits, strength and steps.
            reference: of a ``ReferenceRecorder`` or of ``reference_of_latents``.

        Raises:
            StudioError: a word is not in its prompt.
            UnsupportedModel: the denoiser has no such layers or features.
        """
        super().__init__(plain, config)
        self.reference = reference
        tokenizer = plain.text.tokenizers[0]
        prompts = [tokenize_prompt(tokenizer, p) for p in (config.prompt, reference.prompt)]
        self.terms = edit_terms(config.edits, *prompts)

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
        """Guidance and, in guided steps, the gradient of g; without a graph of its own."""
        step = self.clock.step(t)
        if self.config.scale == 0.0 or step not in self.active:
            return self.plain.guided_noise(
                latents, t, cond, uncond, guidance_scale, rescale=rescale
            )
        with torch.enable_grad(), self.watching(step) as watcher:
            latents = latents.detach().requires_grad_()
            noise = super().guided_noise(latents, t, cond, uncond, guidance_scale, rescale=rescale)
            value = self.energy(watcher.observed(), step)
            (gradient,) = torch.autograd.grad(LOSS_SCALE * value, [latents])
        weight = self.config.scale / LOSS_SCALE * self._weight(t, latents)
        return noise.detach() + weight * gradient

    def energy(self, images: list[Observed], step: int) -> Float[Tensor, ""]:
        """g of all images of a batch at a step."""
        at = self.reference.at(step)
        device = images[0].features.device
        theirs = Observed(tuple(m.to(device) for m in at.maps), at.features.to(device))
        distance = self.config.distance
        parts = [energy(self.terms, mine, theirs, distance=distance) for mine in images]
        return torch.stack(parts).sum()

    def _weight(self, t: Tensor, latents: Tensor) -> Tensor | float:
        _, sigma = alpha_sigma(self.alphas_cumprod, t, latents)
        weights = {"none": 1.0, "sigma": sigma, "one_minus_alpha_bar": sigma**2}
        return weights[self.config.sigma_weight]


@torch.no_grad()
def reference_of_latents(
    prior: NoisePrior,
    config: SelfGuidanceConfig,
    latents: Float[Tensor, "1 c h w"],
    *,
    generator: torch.Generator,
) -> Reference:
    """A real image as a reference: no inversion, it is noised to each guided step's timestep.

    Args:
        prior: sees it.
        config: which steps; its reference prompt says what the image shows.
        latents: the image's clean latents.
        generator: of the noise.
    """
    recorder = ReferenceRecorder(prior, config)
    cond = prior.encode_prompt([recorder.reference.prompt])
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    for step in sorted(recorder.active):
        t = torch.tensor([recorder.clock.timesteps[step]], device=latents.device)
        alpha, sigma = alpha_sigma(prior.alphas_cumprod, t, latents)
        recorder.guided_noise(add_noise(latents, noise, alpha, sigma), t, cond, cond, 1.0)
    return recorder.reference


class _Watcher(AttentionOperation):
    """Keeps the conditional rows' head-mean attention to text, and features; with gradient."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        self.levels = levels
        self.maps: dict[int, Float[Tensor, "b length h w"]] = {}
        """By layer, in the order of their calls."""
        self.features: Float[Tensor, "b c h w"] | None = None

    def applies_to(self, call: AttentionCall) -> bool:
        """In attention to text of middle and decoder at the levels."""
        layer = call.layer
        return layer.is_cross and layer.place != "down" and layer.level in self.levels

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Remember, change nothing."""
        rows = call.rows_of("cond", len(probabilities))
        if rows:
            maps = probabilities[rows].float().mean(dim=1).transpose(1, 2)
            self.maps[call.layer.index] = maps.unflatten(2, call.size)
        return probabilities

    def see_features(self, hub: AttentionHub, output: Tensor | tuple) -> None:
        """Remember the conditional rows of a part's output."""
        output = output[0] if isinstance(output, tuple) else output
        rows = [row for row, role in enumerate(hub.layout.roles) if role == "cond"]
        if rows:
            self.features = output[rows].float()

    def observed(self) -> list[Observed]:
        """Image by image.

        Raises:
            UnsupportedModel: if nothing was seen.
        """
        if not self.maps or self.features is None:
            raise UnsupportedModel(
                "Self-guidance saw no conditional rows - expected a prior that keeps the roles it "
                "is given. Put self-guidance inside of prompt edits, not around them."
            )
        layers = list(self.maps.values())
        return [
            Observed(tuple(layer[row] for layer in layers), self.features[row])
            for row in range(len(self.features))
        ]


def _check_layers(unet: nn.Module, config: SelfGuidanceConfig) -> None:
    layers = [x for x in AttentionHub(unet).layers if x.is_cross and x.place != "down"]
    known = sorted({layer.level for layer in layers})
    if not set(config.levels) & set(known):
        raise UnsupportedModel(
            f"levels are {list(config.levels)}, where this denoiser's middle and decoder see no "
            f"text - expected some of {known}. Change levels."
        )


def _part_of(unet: nn.Module, path: str) -> nn.Module:
    part = unet
    for name in path.split("."):
        is_index = name.lstrip("-").isdigit()
        try:
            part = part[int(name)] if is_index else getattr(part, name)
        except (AttributeError, IndexError, TypeError) as error:
            raise UnsupportedModel(
                f"features is '{path}', and the denoiser has no '{name}' there - expected a part "
                "of its decoder, such as up_blocks.-1. Change features."
            ) from error
    return part
