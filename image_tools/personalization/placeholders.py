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

from renderers.errors import StudioError

if TYPE_CHECKING:
    from transformers import BatchEncoding

__all__ = ["PlaceholderError", "PlaceholderTokenizer", "check_placeholder", "word_ids"]

WORD = re.compile(r"\w(.*\w)?")


class PlaceholderError(StudioError):
    """A placeholder word or the word it starts from cannot be used."""

    exit_code = 2


class PlaceholderTokenizer:
    """Called like a transformers tokenizer, as far as ``TextStack`` calls one."""

    def __init__(self, tokenizer: Any) -> None:
        """Wrap ``tokenizer``, which is only read."""
        self.plain = tokenizer
        self.model_max_length = tokenizer.model_max_length
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
        prompts: Sequence[str],
        *,
        padding: bool | str = False,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Ids and attention masks; ``padding`` is False or "max_length"."""
        from transformers import BatchEncoding

        length = self.model_max_length if max_length is None else max_length
        rows = [self._ids(prompt) for prompt in prompts]
        if truncation:
            rows = [self._cut(ids, length) for ids in rows]
        masks = [[1] * len(ids) for ids in rows]
        if padding == "max_length":
            masks = [mask + [0] * (length - len(mask)) for mask in masks]
            pad = self.plain.pad_token_id
            rows = [ids + [pad] * (length - len(ids)) for ids in rows]
        content = {"input_ids": rows, "attention_mask": masks}
        if return_tensors == "pt":
            content = {name: torch.tensor(values) for name, values in content.items()}
        return BatchEncoding(content)

    def _ids(self, prompt: str) -> list[int]:
        found = self._copy(prompt, verbose=False).input_ids
        return [own for number in found for own in self._expansions.get(number, (number,))]

    def _cut(self, ids: list[int], length: int) -> list[int]:
        """The first ids that fit, and the tokens that end every prompt."""
        if len(ids) <= length:
            return ids
        end = len(ids) - self._end_tokens
        return ids[: length - self._end_tokens] + ids[end:]

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
    is_known = token in tokenizer.get_vocab() or (len(ids) == 1 and ids[0] != _unknown(tokenizer))
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
    known = [number for number in ids if number != _unknown(tokenizer)]
    if not known:
        raise PlaceholderError(
            f"The class word '{word}' has no token in the text encoder's vocabulary - expected a "
            "word it knows. Use a simpler or English one, for instance 'dog'."
        )
    return known


def _unknown(tokenizer: Any) -> int | None:
    """Id of unknown words; byte-level tokenizers name one that stands for something else."""
    has_unknown = getattr(tokenizer.backend_tokenizer.model, "unk_token", None) == "[UNK]"
    return tokenizer.unk_token_id if has_unknown else None
