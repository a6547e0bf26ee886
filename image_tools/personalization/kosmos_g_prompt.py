"""Prompts with images among their words, as KOSMOS-G reads them (arXiv 2310.02992).

    a <i> wearing a hat    ->    <s> a <image> + 64 image positions </image> wearing a hat

The user writes ``<i>`` where an image is meant. The language model sees one ``<image>`` token, then
as many positions as an image has features, which take their place, then ``</image>``. Words on both
sides of an image are tokenised apart from each other, and nothing ends the sequence.

    tokens = PromptTokens(tokenizer, image_length=64)
    row = tokens.read("a <i> wearing a hat", images=1)
    batch = stack_rows([row])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from image_tools.errors import UnsupportedModel
from image_tools.personalization.kosmos_g_words import (
    IMAGE_MARK,
    InterleavedPromptError,
    check_image_count,
    shortened,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "InterleavedBatch",
    "InterleavedRow",
    "PromptTokens",
    "stack_rows",
]

BOS, PAD, IMAGE_BEGINS, IMAGE_ENDS = "<s>", "<pad>", "<image>", "</image>"
PAD_ID = 1


@dataclass(frozen=True)
class InterleavedRow:
    """One prompt as tokens."""

    ids: tuple[int, ...]
    is_image: tuple[bool, ...]
    """True at the positions that features of images take."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class InterleavedBatch:
    """Prompts of one length, padded at their end."""

    ids: Int[Tensor, "b t"]
    is_image: Bool[Tensor, "b t"]
    is_token: Bool[Tensor, "b t"]
    """False where a row is padded."""

    def to(self, device: torch.device) -> InterleavedBatch:
        """The same batch on another device."""
        return InterleavedBatch(
            self.ids.to(device), self.is_image.to(device), self.is_token.to(device)
        )


class PromptTokens:
    """A tokenizer and what it calls the beginnings and ends of prompts and images."""

    def __init__(
        self, tokenizer: Tokenizer, *, image_length: int, max_length: int = 2048, vocabulary: int
    ) -> None:
        """Look up the special tokens.

        Args:
            tokenizer: of the language model.
            image_length: features of one image.
            max_length: tokens of the longest prompt.
            vocabulary: rows of the language model's embedding.

        Raises:
            UnsupportedModel: a special token is missing or has no row in the embedding.
        """
        self._tokenizer = tokenizer
        self.image_length, self.max_length = image_length, max_length
        self.bos, pad, self.image_begins, self.image_ends = (
            _special(tokenizer, word, vocabulary) for word in (BOS, PAD, IMAGE_BEGINS, IMAGE_ENDS)
        )
        if pad != PAD_ID:
            raise UnsupportedModel(
                f"The tokenizer's {PAD} has the number {pad} - expected {PAD_ID}, as in KOSMOS. "
                "Use the tokenizer that belongs to these weights."
            )

    def save(self, path: Path) -> None:
        """Write the tokenizer."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(path))

    def words(self, text: str) -> list[int]:
        """Tokens of plain words, without any beginning or end."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def read(self, prompt: str, images: int) -> InterleavedRow:
        """A prompt as tokens.

        Raises:
            InterleavedPromptError: it names another number of images, or is too long.
        """
        check_image_count(prompt, images)
        first, *others = prompt.split(IMAGE_MARK)
        ids = [self.bos, *self.words(first)]
        is_image = [False] * len(ids)
        for text in others:
            # The public code fills the image's positions with the token that begins it.
            shown, told = [self.image_begins] * (1 + self.image_length), self.words(text)
            ids += [*shown, self.image_ends, *told]
            is_image += [False, *[True] * self.image_length, False, *[False] * len(told)]
        if len(ids) > self.max_length:
            per_image = self.image_length + 2
            raise InterleavedPromptError(
                f"The prompt '{shortened(prompt)}' has {len(ids)} tokens, {images * per_image} of "
                f"them for {images} images - expected at most {self.max_length}. Say less, or show "
                "fewer images."
            )
        return InterleavedRow(tuple(ids), tuple(is_image))


def stack_rows(rows: Sequence[InterleavedRow]) -> InterleavedBatch:
    """Prompts as one batch, padded to the longest."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD_ID)
    is_image = torch.zeros(len(rows), longest, dtype=torch.bool)
    is_token = torch.zeros(len(rows), longest, dtype=torch.bool)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row.ids)
        is_image[k, : len(row)] = torch.tensor(row.is_image)
        is_token[k, : len(row)] = True
    return InterleavedBatch(ids, is_image, is_token)


def _special(tokenizer: Tokenizer, word: str, vocabulary: int) -> int:
    number = tokenizer.token_to_id(word)
    if number is None or number >= vocabulary:
        said = "lacks it" if number is None else f"numbers it {number}"
        raise UnsupportedModel(
            f"The language model needs the token {word}, and its tokenizer {said} - expected one "
            f"of its {vocabulary} rows. Use the tokenizer that belongs to these weights."
        )
    return number
