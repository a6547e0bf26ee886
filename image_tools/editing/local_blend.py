"""Local blending of Prompt-to-Prompt: edits act where their words are seen.

Attention maps of named words, of all steps so far, at one resolution of the encoder and decoder,
make a mask for each prompt (arXiv 2208.01626, section 3.2):

    M = [ upsample(maxpool3x3(mean A)) / max > threshold ],   mask = M_source or M_edit
    z_edit <- z_source + mask (z_edit - z_source)

Words to keep have masks S of their own, without pooling: mask and not (S_source or S_edit).

Maps are those after the edit of attention, as in the published code, whose sums they match. State
is kept by layer and step: a repeated call replaces its own maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.attention import AttentionCall, AttentionHub, AttentionOperation
from image_tools.editing.align import PromptTokens, word_tokens
from image_tools.editing.editing_configs import LocalBlendConfig
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError

__all__ = ["LocalBlend", "WordMapRecorder", "blend_latents", "word_masks"]


class WordMapRecorder(AttentionOperation):
    """Keeps, for each prompt, the summed attention to its words in layers of one level."""

    def __init__(self, words: Sequence[Float[Tensor, " length"]], level: int) -> None:
        """Words as a factor for each token of each prompt; rows of prompt k are "cond:k"."""
        self.words, self.level = tuple(words), level
        self.maps: dict[tuple[int, int], Float[Tensor, "prompts b h w"]] = {}
        """By layer and step."""

    def applies_to(self, call: AttentionCall) -> bool:
        """In attention to text at the level, in encoder and decoder."""
        layer = call.layer
        is_there = layer.is_cross and layer.place != "mid" and layer.level == self.level
        return is_there and call.batch.step is not None

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Remember, change nothing."""
        maps = []
        for lane, words in enumerate(self.words):
            rows = call.rows_of(f"cond:{lane}", len(probabilities))
            own = probabilities[rows, :, :, : len(words)].detach().mean(dim=1)
            maps.append((own @ words.to(own)).unflatten(1, call.size))
        self.maps[call.layer.index, call.batch.step] = torch.stack(maps)
        return probabilities

    def sum_until(self, step: int) -> Float[Tensor, "prompts b h w"]:
        """Maps of all layers and of all steps so far.

        Raises:
            StudioError: if nothing was recorded.
        """
        if step == 0:
            # A new image: later steps in the store are of the one before.
            self.maps = {key: value for key, value in self.maps.items() if key[1] == 0}
        found = [value for (_, at), value in self.maps.items() if at <= step]
        if not found:
            raise StudioError(
                f"No attention maps were seen until step {step} - expected those of the prior that "
                "blends. Sample with that prior."
            )
        return torch.stack(found).sum(dim=0)


class LocalBlend:
    """Keeps the source's latents where no named word is seen. Called after each step."""

    def __init__(
        self,
        config: LocalBlendConfig,
        prompts: Sequence[PromptTokens],
        unet: nn.Module,
        steps: int,
    ) -> None:
        """Find the words, and layers to see them in.

        Raises:
            StudioError: a word is not in its prompt.
            UnsupportedModel: no layer of the encoder or decoder has attention at the level.
        """
        layers = AttentionHub(unet).layers
        levels = {layer.level for layer in layers if layer.is_cross and layer.place != "mid"}
        if config.level not in levels:
            raise UnsupportedModel(
                f"level of the blend is {config.level}, where this denoiser sees no text - "
                f"expected one of {sorted(levels)}. Change level."
            )
        self.config, self.steps, self._prompts = config, steps, len(prompts)
        self.operations = [WordMapRecorder(_factors(config.words, prompts), config.level)]
        """What must be part of the attention while the prior predicts."""
        if config.keep_words:
            keep = _factors(config.keep_words, prompts)
            self.operations.append(WordMapRecorder(keep, config.level))

    def __call__(
        self, step: int, latents: Float[Tensor, "rows c h w"]
    ) -> Float[Tensor, "rows c h w"]:
        """The latents after step number ``step``, from 0."""
        masks = self.masks(step, tuple(latents.shape[-2:]))
        if step + 1 <= int(self.config.start * self.steps):
            return latents
        lanes = latents.unflatten(0, (self._prompts, -1))
        return blend_latents(lanes, masks).flatten(0, 1)

    def masks(self, step: int, size: tuple[int, int]) -> Bool[Tensor, "prompts b h w"]:
        """Where each prompt may differ from the source, by the maps until a step."""
        config = self.config
        words = self.operations[0].sum_until(step)
        found = _or_source(word_masks(words, size, threshold=config.threshold, pool=3))
        for recorder in self.operations[1:]:
            kept = recorder.sum_until(step)
            kept = word_masks(kept, size, threshold=config.keep_threshold, pool=1)
            found = found & ~_or_source(kept)
        return found


def word_masks(
    maps: Float[Tensor, "prompts b h w"], size: tuple[int, int], *, threshold: float, pool: int
) -> Bool[Tensor, "prompts b height width"]:
    """Maps widened by ``pool`` pixels, brought to a size, above a share of their own maximum."""
    wide = F.max_pool2d(maps.flatten(0, 1)[:, None], pool, stride=1, padding=pool // 2)
    large = F.interpolate(wide, size, mode="nearest")[:, 0]
    largest = large.amax(dim=(1, 2), keepdim=True)
    return (large > threshold * largest).unflatten(0, maps.shape[:2])


def blend_latents(
    latents: Float[Tensor, "prompts b c h w"], masks: Bool[Tensor, "prompts b h w"]
) -> Float[Tensor, "prompts b c h w"]:
    """Each edit inside of its mask, and the source elsewhere.

    A mask of one's own may be given in the place of ``LocalBlend.masks``.

    Raises:
        ShapeError: if the masks do not have the latents' size.
    """
    wanted = (*latents.shape[:2], *latents.shape[3:])
    if tuple(masks.shape) != wanted:
        raise ShapeError(
            f"masks have shape {tuple(masks.shape)}, expected {wanted} for these latents. Resize "
            "them to the latents' rows and columns."
        )
    return torch.where(masks[:, :, None], latents, latents[:1])


def _or_source(masks: Bool[Tensor, "prompts b h w"]) -> Bool[Tensor, "prompts b h w"]:
    """Places of each prompt, and those of the source, which is first."""
    return masks[:1] | masks


def _factors(
    words: Sequence[Sequence[str | int]], prompts: Sequence[PromptTokens]
) -> list[Float[Tensor, " length"]]:
    """1 for each token of the words of each prompt."""
    factors = []
    for names, prompt in zip(words, prompts, strict=True):
        factor = torch.zeros(prompt.length)
        for name in names:
            factor[list(word_tokens(prompt, name))] = 1.0
        factors.append(factor)
    return factors
