"""Where an edit may act in a view: everywhere, where words are seen, or where a box is.

find_mask = build_mask(config.mask, prior, prompts, original)
mask = find_mask(latents, source_latents, cameras, generator)        # [b, 1, s, s], 0 or 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.delta_edit_configs import (
    BoxMaskConfig,
    EditMaskConfig,
    EverywhereConfig,
    WordMaskConfig,
)
from guidance.layout_guided_energy import WordAttention
from guidance.layout_parts import check_word_places
from guidance.noising import noisy_latents
from guidance.original import Original
from guidance.prompts import ViewPrompts
from image_tools.diffusion.attention import attention_operations
from image_tools.diffusion.conditions import TextEmbedding
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.align import refinement_map, tokenize_prompt, word_tokens
from image_tools.editing.local_blend import word_masks
from renderers.boxes import box_masks
from renderers.cameras import Cameras
from renderers.errors import StudioError

__all__ = ["EditMask", "build_mask", "changed_tokens"]

Tokens = tuple[int, ...]


class EditMask(Protocol):
    """Finds where an edit may act."""

    def __call__(
        self, edited: Tensor, source: Tensor, cameras: Cameras, generator: torch.Generator
    ) -> Tensor:
        """Masks [b, 1, s, s] of 0 and 1, for the latents of both scenes."""
        ...


def build_mask(
    config: EditMaskConfig, prior: DiffusionPrior, prompts: ViewPrompts, original: Original
) -> EditMask:
    """The mask for a config.

    Args:
        config: its kind.
        prior: sees words.
        prompts: the scene's.
        original: the scene before the edit, and its word that changes.

    Raises:
        StudioError: the word is missing, or not in the source prompt.
    """
    if isinstance(config, EverywhereConfig):
        return everywhere
    if isinstance(config, BoxMaskConfig):
        return BoxMask(config)
    return WordMask(config, prior, prompts, original)


def everywhere(
    edited: Float[Tensor, "b c s s"],
    source: Float[Tensor, "b c s s"],
    cameras: Cameras,
    generator: torch.Generator,
) -> Float[Tensor, "b 1 s s"]:
    """1 for every latent."""
    return torch.ones_like(edited[:, :1])


@dataclass(frozen=True)
class BoxMask:
    """1 where a box is seen, alone."""

    config: BoxMaskConfig

    def __call__(
        self,
        edited: Float[Tensor, "b c s s"],
        source: Float[Tensor, "b c s s"],
        cameras: Cameras,
        generator: torch.Generator,
    ) -> Float[Tensor, "b 1 s s"]:
        """Latents that the box touches."""
        masks = box_masks([self.config.box], cameras, tuple(edited.shape[-2:]))
        return (masks > 0.0).to(edited)


class WordMask:
    """1 where the words that change are seen, in the original or in the edited scene."""

    def __init__(
        self,
        config: WordMaskConfig,
        prior: DiffusionPrior,
        prompts: ViewPrompts,
        original: Original,
    ) -> None:
        """Find the words.

        Raises:
            StudioError: the word is missing, or not in the source prompt.
        """
        self.config, self.prior, self.prompts, self.original = config, prior, prompts, original
        check_word_places(prompts)
        texts = (original.prompts.prompt, prompts.prompt)
        self.words = changed_tokens(prior, *texts, original.word)
        self.kept: tuple[Tokens, Tokens] = ((), ())
        if config.keep_word.strip():
            tokenizer = prior.text.tokenizers[0]
            source, target = (
                word_tokens(tokenize_prompt(tokenizer, text), config.keep_word) for text in texts
            )
            self.kept = (source, target)

    @torch.no_grad()
    def __call__(
        self,
        edited: Float[Tensor, "b c s s"],
        source: Float[Tensor, "b c s s"],
        cameras: Cameras,
        generator: torch.Generator,
    ) -> Float[Tensor, "b 1 s s"]:
        """Where one of both is seen; both with the same noise."""
        t = torch.full((len(edited),), int(self.config.t * len(self.prior.alphas_cumprod)))
        noisy = noisy_latents(self.prior, source, t, generator=generator)
        shift = noisy.alpha * (edited.detach() - source.detach())
        texts = [prompts.at(cameras) for prompts in (self.original.prompts, self.prompts)]
        maps = [
            self._map(z_t, noisy.t, text.positive, words, kept)
            for z_t, text, words, kept in zip(
                (noisy.z_t, noisy.z_t + shift), texts, self.words, self.kept, strict=True
            )
        ]
        found = word_masks(
            torch.stack(maps),
            tuple(edited.shape[-2:]),
            threshold=self.config.threshold,
            pool=2 * self.config.widen + 1,
        )
        return found.any(dim=0)[:, None].to(edited)

    def _map(
        self, z_t: Tensor, t: Tensor, text: TextEmbedding, words: Tokens, kept: Tokens
    ) -> Float[Tensor, "b s s"]:
        """Attention to words, where there is more of it than to those that are kept."""
        watcher = WordAttention(self.config.levels)
        with attention_operations(self.prior.unet, [watcher]):
            self.prior.predict_output(z_t, t, text)
        size = tuple(z_t.shape[-2:])
        layers = [F.interpolate(maps, size, mode="bilinear") for maps in watcher.seen()]
        attention = torch.stack(layers).mean(dim=0)
        mine = _relative(attention, words)
        if not kept:
            return mine
        return torch.where(mine > _relative(attention, kept), mine, 0.0)


def _relative(attention: Float[Tensor, "b length s s"], tokens: Tokens) -> Float[Tensor, "b s s"]:
    """Attention to tokens over its mean in each view."""
    maps = attention[:, list(tokens)].mean(dim=1)
    return maps / maps.mean(dim=(1, 2), keepdim=True)


def changed_tokens(
    prior: DiffusionPrior, source: str, target: str, word: str
) -> tuple[Tokens, Tokens]:
    """Tokens of a word of the source prompt, and those that stand for it in the target prompt.

    In the target these are the tokens that align with the word's own, and all that are new.

    Raises:
        StudioError: no word is named, it is not in the source prompt, or nothing stands for it.
    """
    if not word.strip():
        raise StudioError(
            f"edit.word is empty and the mask is found by words - expected a word of '{source}' "
            "that names what changes. Set edit.word, or guidance.mask.kind=everywhere."
        )
    tokenizer = prior.text.tokenizers[0]
    before, after = tokenize_prompt(tokenizer, source), tokenize_prompt(tokenizer, target)
    mine = word_tokens(before, word)
    positions, shared = refinement_map(before, after)
    inside = range(1, len(after.ids) - 1)
    theirs = tuple(k for k in inside if not shared[k] or int(positions[k]) in mine)
    if not theirs:
        raise StudioError(
            f"'{target}' says nothing in the place of '{word}' - expected a prompt that keeps or "
            "replaces the word. Leave it in, or set guidance.mask.kind to box."
        )
    return mine, theirs
