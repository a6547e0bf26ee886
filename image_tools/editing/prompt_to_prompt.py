"""Prompt-to-Prompt (Hertz et al., arXiv 2208.01626): edits that keep an image by its attention.

The source prompt and its edits are sampled in one batch from the same noise. In the conditional
half, an edit's attention to text becomes (section 3.2)

    replace   A_hat = A_source M          refine   A_hat = alpha A_source[m] + (1 - alpha) A_edit
    reweight  A_hat <- c A_hat            gate     A_edit <- w(step, token) A_hat + (1 - w) A_edit

and its self-attention the source's, in small layers and early steps. Local blending keeps latents
of the source outside of the places of named words. All edits are out of place and depend on the
layer and the step alone, so gradients pass and repeated calls change nothing.

Deviations: see ``align``; the edit and its schedule are the prior's (``PromptToPromptPrior``), so
any sampler or guidance rule with its rows in the order [source, edit 1, ...] gets them.

    prior = PromptToPromptPrior(prior, PromptToPromptConfig("a red duck", (edit,)))
    images = edit_images(prior, generators=[generator], config=DdimConfig(steps=50))
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from image_tools.configs import DdimConfig
from image_tools.diffusion.attention import (
    AttentionCall,
    AttentionHub,
    AttentionOperation,
    BatchLayout,
    attention_operations,
)
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.modified import ModifiedPrior
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.sampling import ddim_steps, denoise_latents, unit_noise
from image_tools.diffusion.step_clock import StepClock
from image_tools.editing.align import (
    PromptTokens,
    refinement_map,
    replacement_map,
    tokenize_prompt,
    word_tokens,
    word_weights,
)
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.local_blend import LocalBlend, blend_latents
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError

__all__ = [
    "PromptToPromptAttention",
    "PromptToPromptPrior",
    "TokenEdit",
    "edit_images",
    "token_edit",
]

# Published for latents of 64 x 64: layers of up to 16 x 16 tokens, a quarter of each side.
PUBLISHED_TOKENS = 16 * 16
LATENTS_PER_TOKEN = 4


@dataclass(frozen=True)
class TokenEdit:
    """An edited prompt as tensors."""

    config: EditedPromptConfig
    mapping: Float[Tensor, "length length"]
    """Attention of source tokens to that of the edit's tokens."""
    share: Float[Tensor, " length"]
    """alpha: 0 where a token has no source and keeps its own attention."""
    weights: Float[Tensor, " length"]
    """c: factor of each token's attention."""
    gate: Float[Tensor, "steps length"]
    """w: 1 where a step shares a token's attention."""

    def cross(
        self, source: Float[Tensor, "b heads n m"], edit: Float[Tensor, "b heads n m"], step: int
    ) -> Float[Tensor, "b heads n m"]:
        """The edit's attention to text; tokens that an adapter appended stay its own."""
        length = self.share.shape[0]
        source, own, extra = source[..., :length], edit[..., :length], edit[..., length:]
        mapping, share, weights, gate = (
            x.to(own) for x in (self.mapping, self.share, self.weights, self.gate[step])
        )
        shared = weights * (share * (source @ mapping) + (1.0 - share) * own)
        return torch.cat([gate * shared + (1.0 - gate) * own, extra], dim=-1)

    def shares_cross(self, step: int) -> bool:
        """Whether attention to text is changed in a step."""
        return bool(self.gate[step].any())

    def shares_self(self, step: int) -> bool:
        """Whether self-attention is changed in a step."""
        start, end = (int(share * len(self.gate)) for share in self.config.self_steps)
        return start <= step < end

    def fits_self(self, call: AttentionCall) -> bool:
        """Whether a layer is small enough for its self-attention to be changed."""
        (height, width), most = call.size, self.config.self_max_tokens
        if most is None:
            rows, columns = (-(-side // LATENTS_PER_TOKEN) for side in call.latent_size)
            most = max(PUBLISHED_TOKENS, rows * columns)
        return height * width <= most

    def shares_ever(self) -> bool:
        """Whether attention is changed in any step."""
        steps = range(len(self.gate))
        return self.shares_self_ever() or any(self.shares_cross(step) for step in steps)

    def shares_self_ever(self) -> bool:
        """Whether self-attention is changed in any step."""
        return any(self.shares_self(step) for step in range(len(self.gate)))


def token_edit(
    source: PromptTokens, target: PromptTokens, config: EditedPromptConfig, steps: int
) -> TokenEdit:
    """Alignment, weights and gates of one edit.

    Raises:
        StudioError: a word is not in the edited prompt, or prompts to swap differ in length.
    """
    if config.align == "replace":
        mapping, share = replacement_map(source, target), torch.ones(target.length)
    else:
        positions, share = refinement_map(source, target)
        mapping = torch.zeros(target.length, target.length)
        mapping[positions, torch.arange(target.length)] = 1.0
    gate = torch.zeros(steps + 1, target.length)
    _open(gate, slice(None), config.cross_steps)
    for word in config.word_steps:
        tokens = list(word_tokens(target, word.word))
        gate[:, tokens] = 0.0
        _open(gate, tokens, (word.start, word.end))
    weights = word_weights(target, {w.word: w.weight for w in config.word_weights})
    return TokenEdit(config, mapping, share, weights, gate[:steps])


class PromptToPromptAttention(AttentionOperation):
    """Gives edits the source's attention. Rows of edit k have the role "cond:k", the source's
    "cond:0"."""

    def __init__(self, edits: Sequence[TokenEdit]) -> None:
        """Edits in the order of their roles."""
        self.edits = tuple(edits)

    def applies_to(self, call: AttentionCall) -> bool:
        """In steps and layers that some edit shares."""
        return call.batch.step is not None and any(self._acts(call, e) for e in self.edits)

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Exchange the edits' rows."""
        rows, result = len(probabilities), probabilities
        source = probabilities[call.rows_of("cond:0", rows)]
        for number, edit in enumerate(self.edits, start=1):
            own = call.rows_of(f"cond:{number}", rows)
            if not own or not self._acts(call, edit):
                continue
            new = source
            if call.layer.is_cross:
                new = edit.cross(source, probabilities[own], call.batch.step)
            result = result.index_copy(0, torch.tensor(own, device=result.device), new)
        return result

    def _acts(self, call: AttentionCall, edit: TokenEdit) -> bool:
        if call.layer.is_cross:
            return edit.shares_cross(call.batch.step)
        return edit.shares_self(call.batch.step) and edit.fits_self(call)


class PromptToPromptPrior(ModifiedPrior):
    """A prior for batches [source, edit 1, edit 2, ...], each of as many rows."""

    def __init__(
        self,
        plain: NoisePrior,
        config: PromptToPromptConfig,
        *,
        mask: Bool[Tensor, "h w"] | None = None,
    ) -> None:
        """Prepare the edits.

        Args:
            plain: the prior.
            config: source, edits and where they are allowed.
            mask: latents that edits may change, in the place of ``config.blend``.

        Raises:
            StudioError: prompts or words do not fit.
            UnsupportedModel: no layer has the maps that blending wants, or is as small as sharing
                of self-attention wants.
        """
        super().__init__(plain)
        self.config, self.mask = config, mask
        self.prompts = (config.source, *(edit.prompt for edit in config.edits))
        tokenizer = plain.text.tokenizers[0]
        tokens = [tokenize_prompt(tokenizer, prompt) for prompt in self.prompts]
        self.edits = tuple(
            token_edit(tokens[0], target, edit, config.steps)
            for target, edit in zip(tokens[1:], config.edits, strict=True)
        )
        for edit in self.edits:
            if edit.shares_self_ever():
                _check_self_layers(edit, plain)
        self.clock = StepClock([step.t for step in ddim_steps(plain, config.steps)])
        self.blend = None
        if config.blend is not None:
            self.blend = LocalBlend(config.blend, tokens, plain.unet, config.steps)
        shares = any(edit.shares_ever() for edit in self.edits)
        self.is_on = shares or self.blend is not None or mask is not None

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with roles: which prompt each row belongs to.

        Raises:
            ShapeError: if there are not as many rows for each prompt.
        """
        if not self.is_on:  # roles that a tool around this one gave stay as they are
            return condition
        lanes = len(self.prompts)
        if rows % lanes:
            raise ShapeError(
                f"{rows} latents came for {lanes} prompts - expected as many for the source and "
                "each edit, one prompt after the other."
            )
        half = "cond" if is_cond else "uncond"
        roles = tuple(f"{half}:{lane}" for lane in range(lanes) for _ in range(rows // lanes))
        return replace(condition.expand(rows), roles=roles)

    def predict_output(
        self,
        latents: Float[Tensor, "b c h w"],
        t: Int[Tensor, " b"],
        condition: Condition | TextEmbedding,
    ) -> Float[Tensor, "b c h w"]:
        """The denoiser's output with shared attention; every row counts as conditional."""
        with self._sharing(t):
            return super().predict_output(latents, t, condition)

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
        """Guidance with attention shared in its conditional half."""
        with self._sharing(t):
            return super().guided_noise(latents, t, cond, uncond, guidance_scale, rescale=rescale)

    def after_step(self, step: int, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Local blending of a sampler's result; without it, the latents themselves."""
        if self.mask is not None:
            lanes = latents.unflatten(0, (len(self.prompts), -1))
            masks = self.mask.to(latents.device).expand(*lanes.shape[:2], *self.mask.shape)
            return blend_latents(lanes, masks).flatten(0, 1)
        return latents if self.blend is None else self.blend(step, latents)

    def _sharing(self, t: Tensor) -> AbstractContextManager:
        if not self.is_on:
            return nullcontext()
        operations: list[AttentionOperation] = [PromptToPromptAttention(self.edits)]
        if self.blend is not None:
            operations += self.blend.operations
        return attention_operations(self.unet, operations, step=self.clock.step(t))


def edit_images(
    prior: PromptToPromptPrior,
    *,
    generators: Sequence[torch.Generator],
    config: DdimConfig,
    negative_prompt: str = "",
    start: Float[Tensor, "n c h w"] | None = None,
) -> Float[Tensor, "prompts n height width 3"]:
    """Images of the source and its edits from the same noise, that of the steps too.

    Args:
        prior: the edits.
        generators: one for each source image.
        config: as many steps as the edits count.
        negative_prompt: for all of them.
        start: latents of the first timestep, such as inverted ones, in place of noise.

    Raises:
        ValueError: if the numbers of steps differ.
    """
    if config.steps != prior.config.steps:
        raise ValueError(
            f"the sampler has {config.steps} steps and the edits count {prior.config.steps}. Give "
            "both the same."
        )
    size, lanes = prior.latent_size, len(prior.prompts)
    if start is None:
        start = unit_noise((prior.latent_channels, size, size), generators, prior.device)
    count = len(start)
    rows = torch.arange(lanes).repeat_interleave(count)
    latents = denoise_latents(
        prior,
        start.repeat(lanes, 1, 1, 1),
        prior.encode_prompt(prior.prompts).select(rows),
        prior.encode_negative([negative_prompt]).expand(lanes * count),
        generators=generators,
        config=config,
        after_step=prior.after_step,
    )
    return prior.decode_latents(latents).unflatten(0, (lanes, count))


def _check_self_layers(edit: TokenEdit, prior: NoisePrior) -> None:
    """Refuse an edit whose self_steps would change nothing."""
    size = (prior.latent_size, prior.latent_size)
    own = [layer for layer in AttentionHub(prior.unet).layers if not layer.is_cross]
    calls = [AttentionCall(layer, BatchLayout(), size) for layer in own]
    if any(edit.fits_self(call) for call in calls):
        return
    smallest = min((call.size[0] * call.size[1] for call in calls), default=0)
    raise UnsupportedModel(
        f"self_steps of '{edit.config.prompt}' share self-attention of layers with up to "
        f"{edit.config.self_max_tokens} image tokens, and this denoiser's smallest has {smallest} "
        "- expected some that fit. Raise self_max_tokens, or set self_steps to [0, 0]."
    )


def _open(gate: Tensor, tokens: slice | list[int], shares: tuple[float, float]) -> None:
    """Bounds are floored, as published, on one row more than there are steps."""
    start, end = (int(share * len(gate)) for share in shares)
    gate[start:end, tokens] = 1.0
