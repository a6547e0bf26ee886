"""One token of a prompt for each row that PhotoMaker makes of photos (arXiv 2312.04461).

The trigger is taken out, and the token of the class word before it (of a word of several tokens,
the last one) is repeated; these places are what the fuse module rewrites. A prompt that grows too
long loses its end, as any other, but never these tokens and never the closing one (the authors'
code drops that).

    tokenizer = RepeatingTokenizer(tower.tokenizer, "img", copies=4)
    ids, places = tokenizer(["a man img, riding"]).input_ids, tokenizer.span("a man img, riding")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from image_tools.personalization.photomaker_prompts import TriggerError, split_trigger

if TYPE_CHECKING:
    from transformers import BatchEncoding

__all__ = ["RepeatingTokenizer"]


class RepeatingTokenizer:
    """Called like a transformers tokenizer, as far as ``TextStack`` does."""

    def __init__(self, tokenizer: Callable[..., Any], trigger: str, *, copies: int) -> None:
        """Wrap a tokenizer, whose prompts then have the class word's token ``copies`` times."""
        self.plain, self.trigger, self.copies = tokenizer, trigger, copies
        self.model_max_length = tokenizer.model_max_length
        empty = len(tokenizer("").input_ids)
        self._end_tokens = empty - 1
        # Asked of the tokenizer, because one that knows learned words does not say it.
        self._pad = tokenizer("", padding="max_length", max_length=empty + 1).input_ids[-1]

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
            rows = [ids + [self._pad] * (length - len(ids)) for ids in rows]
            masks = [mask + [0] * (length - len(mask)) for mask in masks]
        content: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if return_tensors == "pt":
            content = {name: torch.tensor(values) for name, values in content.items()}
        return BatchEncoding(content)

    def span(self, prompt: str) -> range:
        """Where the copies stand.

        Raises:
            TriggerError: the photos' tokens do not fit behind what comes before.
        """
        first = len(self._head(prompt)) - 1
        last, room = first + self.copies, self.model_max_length - self._end_tokens
        if last > room:
            raise TriggerError(
                f"The class word of '{prompt:.60}' is token {first} and stands for {self.copies} "
                f"of the photos - expected that they end within the {room} tokens that the text "
                "encoder reads. Name the person earlier in the prompt, or give fewer photos."
            )
        return range(first, last)

    def _head(self, prompt: str) -> list[int]:
        """The tokens up to the class word's own."""
        before = split_trigger(prompt, self.trigger).before
        ids = self.plain(before, verbose=False).input_ids
        return ids[: len(ids) - self._end_tokens]

    def _ids(self, prompt: str) -> list[int]:
        head = self._head(prompt)
        after = self.plain(split_trigger(prompt, self.trigger).after, verbose=False).input_ids
        return [*head[:-1], *[head[-1]] * self.copies, *after[1:]]

    def _cut(self, ids: list[int], length: int) -> list[int]:
        """The first tokens that fit, and those that end every prompt."""
        if len(ids) <= length:
            return ids
        return ids[: length - self._end_tokens] + ids[len(ids) - self._end_tokens :]
