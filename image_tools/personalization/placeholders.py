"""Placeholder words such as ``<my-dog>`` in front of a tokenizer that is left as it is.

The stock way adds ``<my-dog>``, ``<my-dog>_1``, ... to the tokenizer and rewrites prompts as text,
which misses other cases of letters and cuts a placeholder out of a longer one. Here a copy of the
tokenizer knows each placeholder as one token (leftmost, then longest match; case as the tokenizer
has it), and its id is replaced by the ids of its rows. Prompts are cut and padded afterwards.

    tokenizer = PlaceholderTokenizer(tower.tokenizer)
    tokenizer.add("<my-dog>", range(49408, 49410))
    tokenizer(["a photo of <my-dog>"]).input_ids
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from image_tools.diffusion.text import unknown_id
from renderers.errors import StudioError

if TYPE_CHECKING:
    from transformers import BatchEncoding

__all__ = ["PlaceholderError", "PlaceholderTokenizer", "check_placeholder", "word_ids"]

WORD = re.compile(r"\w(.*\w)?")
Token = tuple[int, tuple[int, int], int]
"""Id, place in the prompt, and 1 for what the tokenizer adds by itself."""


class PlaceholderError(StudioError):
    """A placeholder word or the word it starts from cannot be used."""

    exit_code = 2


class PlaceholderTokenizer:
    """Called like a transformers tokenizer, as far as ``TextStack`` and ``tokenize_prompt`` do."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap ``tokenizer``, which is only read."""
        self.plain = tokenizer
        self.model_max_length = tokenizer.model_max_length
        self.backend_tokenizer = getattr(tokenizer, "backend_tokenizer", None)
        self.unk_token_id = getattr(tokenizer, "unk_token_id", None)
        self._rows: dict[str, range] = {}
        self._copy, self._expansions = tokenizer, {}
        self._end_tokens = len(tokenizer("").input_ids) - 1

    def add(self, token: str, ids: range) -> None:
        """Make ``token`` stand for ``ids``, which must lie beyond the tokenizer's own."""
        self._rows[token] = ids
        self._rebuild()

    def remove(self, token: str) -> None:
        """Make ``token`` ordinary text again."""
        del self._rows[token]
        self._rebuild()

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Ids and attention masks; ``padding`` is False or "max_length".

        All rows of a placeholder have its place in the prompt.
        """
        from transformers import BatchEncoding

        length = self.model_max_length if max_length is None else max_length
        rows = [self._tokens(p) for p in ([prompts] if isinstance(prompts, str) else prompts)]
        if truncation:
            rows = [self._cut(tokens, length) for tokens in rows]
        counts, pad = [len(tokens) for tokens in rows], (self.plain.pad_token_id, (0, 0), 1)
        if padding == "max_length":
            rows = [tokens + [pad] * (length - len(tokens)) for tokens in rows]
        content: dict[str, Any] = {
            "input_ids": [[number for number, _, _ in tokens] for tokens in rows],
            "attention_mask": [
                [int(place < count) for place in range(len(tokens))]
                for tokens, count in zip(rows, counts, strict=True)
            ],
        }
        if return_offsets_mapping:
            content["offset_mapping"] = [[span for _, span, _ in tokens] for tokens in rows]
        if return_special_tokens_mask:
            content["special_tokens_mask"] = [[mark for _, _, mark in tokens] for tokens in rows]
        if isinstance(prompts, str) and return_tensors is None:
            content = {name: values[0] for name, values in content.items()}
        if return_tensors == "pt":
            content = {name: torch.tensor(values) for name, values in content.items()}
        return BatchEncoding(content)

    def _tokens(self, prompt: str) -> list[Token]:
        found = self._copy(
            prompt, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )
        return [
            (own, tuple(span), mark)
            for number, span, mark in zip(
                found.input_ids, found.offset_mapping, found.special_tokens_mask, strict=True
            )
            for own in self._expansions.get(number, (number,))
        ]

    def _cut(self, tokens: list[Token], length: int) -> list[Token]:
        """The first tokens that fit, and those that end every prompt."""
        if len(tokens) <= length:
            return tokens
        end = len(tokens) - self._end_tokens
        return tokens[: length - self._end_tokens] + tokens[end:]

    def _rebuild(self) -> None:
        if not self._rows:
            self._copy, self._expansions = self.plain, {}
            return
        from tokenizers import AddedToken

        self._copy = copy.deepcopy(self.plain)
        self._copy.add_tokens(
            [
                # A word of letters is no part of longer words; one in brackets may touch others.
                AddedToken(token, normalized=True, single_word=bool(WORD.fullmatch(token)))
                for token in self._rows
            ]
        )
        self._expansions = {
            self._copy.convert_tokens_to_ids(token): ids for token, ids in self._rows.items()
        }


def check_placeholder(tokenizer: Any, token: str, others: Iterable[str] = ()) -> None:
    """Refuse a word that cannot stand for rows of its own.

    Args:
        tokenizer: a plain transformers tokenizer.
        token: the placeholder.
        others: placeholders that are in use already.

    Raises:
        PlaceholderError: it is empty, has spaces, is an ordinary token, or is in use.
    """
    advice = "Choose another, for instance '<my-thing>'."
    if not token or token != "".join(token.split()):
        raise PlaceholderError(
            f"The placeholder is '{token}' - expected one word without spaces. {advice}"
        )
    if token.casefold() in {other.casefold() for other in others}:
        raise PlaceholderError(
            f"The placeholder '{token}' is in use already - expected a new word. {advice}"
        )
    ids = tokenizer(token, add_special_tokens=False).input_ids
    is_known = token in tokenizer.get_vocab() or (len(ids) == 1 and ids[0] != unknown_id(tokenizer))
    if is_known:
        raise PlaceholderError(
            f"The placeholder '{token}' is a token of the text encoder's vocabulary already - "
            f"expected a word it does not have, or its old meaning would be lost. {advice}"
        )


def word_ids(tokenizer: Any, word: str) -> list[int]:
    """The tokens of a word or phrase.

    Raises:
        PlaceholderError: if there are none that the tokenizer knows.
    """
    if not word.strip():
        raise PlaceholderError(
            "The class word is missing - expected what the subject is in a word or two, for "
            "instance 'dog' or 'teddy bear'. The new token starts from its meaning."
        )
    ids = tokenizer(word, add_special_tokens=False).input_ids
    known = [number for number in ids if number != unknown_id(tokenizer)]
    if not known:
        raise PlaceholderError(
            f"The class word '{word}' has no token in the text encoder's vocabulary - expected a "
            "word it knows. Use a simpler or English one, for instance 'dog'."
        )
    return known
