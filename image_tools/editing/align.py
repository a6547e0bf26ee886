"""Which tokens of an edited prompt belong to which tokens of the source prompt.

Prompt-to-Prompt (Hertz et al., arXiv 2208.01626) copies attention maps from token to token. Words
are what spaces separate; punctuation that is attached to a word belongs to it. Tokens are found
by the tokenizer's offsets, so that CLIP's byte pairs and BERT's word pieces are treated alike.

* ``replacement_map``: word for word, for prompts of as many words. A_hat = A_source M.
* ``refinement_map``: longest common tokens (Needleman-Wunsch; gap 0, match 1, mismatch -1).

Deviation: published code gives words behind a swap the map of the token at their own *position*,
which is another word's if the swapped words have different numbers of tokens. Here a word that
stays keeps its own map; for equal numbers of tokens there is no difference.

    source, target = (tokenize_prompt(tokenizer, p) for p in ("a red duck", "a red fox"))
    mapping = replacement_map(source, target)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from image_tools.editing.phrases import bare_word, phrase_starts
from renderers.errors import StudioError

__all__ = [
    "PromptTokens",
    "WordsError",
    "refinement_map",
    "replacement_map",
    "tokenize_prompt",
    "tokens_at",
    "word_tokens",
    "word_weights",
]


class WordsError(StudioError):
    """Words that an edit speaks of are not those of its prompts."""

    exit_code = 2


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as its text encoder sees it."""

    text: str
    ids: tuple[int, ...]
    """Ids with both special tokens, without padding, cut to ``length``."""
    words: tuple[str, ...]
    """What spaces separate."""
    tokens_of: tuple[tuple[int, ...], ...]
    """Positions of each word's tokens; empty for a word that was cut off."""
    length: int
    """Number of tokens that the encoder makes of any prompt."""


def tokenize_prompt(tokenizer: Callable, text: str) -> PromptTokens:
    """Tokens and words of a prompt, of a transformers tokenizer that knows offsets."""
    length = tokenizer.model_max_length
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    spans, start = [], 0
    words = text.split()
    for word in words:
        start = text.index(word, start)
        spans.append((start, start + len(word)))
        start += len(word)
    tokens_of: list[list[int]] = [[] for _ in words]
    specials = encoded.special_tokens_mask
    for position, (first, last) in enumerate(encoded.offset_mapping):
        shared = [min(last, end) - max(first, begin) for begin, end in spans]
        if not specials[position] and shared and max(shared) > 0:
            tokens_of[shared.index(max(shared))].append(position)
    return PromptTokens(
        text, tuple(encoded.input_ids), tuple(words), tuple(map(tuple, tokens_of)), length
    )


def word_tokens(prompt: PromptTokens, word: str | int) -> tuple[int, ...]:
    """Positions of the tokens of a word, or of several words in a row.

    Args:
        prompt: where to look.
        word: a word counts everywhere it stands, without regard to case and attached punctuation;
            a number is one word by its place, from 0.

    Raises:
        WordsError: the prompt has no such word, or its text encoder does not read that far.
    """
    if isinstance(word, int):
        if not 0 <= word < len(prompt.words):
            raise WordsError(
                f"Word number {word} of the prompt '{prompt.text}' - expected 0 to "
                f"{len(prompt.words) - 1}. Words are counted from 0."
            )
        places = [word]
    else:
        places = _places(prompt, word)
    return tokens_at(prompt, places, word)


def tokens_at(prompt: PromptTokens, places: Iterable[int], word: str | int) -> tuple[int, ...]:
    """Positions of the tokens of the words at some places, which ``word`` names.

    Raises:
        WordsError: the prompt's text encoder does not read that far.
    """
    found = tuple(t for place in places for t in prompt.tokens_of[place])
    if not found:
        raise WordsError(
            f"'{word}' of the prompt '{prompt.text}' lies behind the {prompt.length} tokens that "
            "the text encoder reads. Shorten the prompt, or move the word to the front."
        )
    return found


def word_weights(prompt: PromptTokens, weights: dict[str | int, float]) -> Float[Tensor, " length"]:
    """A factor for each token, 1 where no word is named."""
    factors = torch.ones(prompt.length)
    for word, weight in weights.items():
        factors[list(word_tokens(prompt, word))] = weight
    return factors


def replacement_map(source: PromptTokens, target: PromptTokens) -> Float[Tensor, "length length"]:
    """M of ``A_hat[:, j] = sum_i A_source[:, i] M[i, j]``, word for word.

    Words of as many tokens map token by token, others share: M[i, j] = 1 / number of j, which
    keeps the sum of attention. Padding maps to padding.

    Raises:
        WordsError: the prompts have different numbers of words, or a word of the source lies behind
            the last token that is read and its target does not.
    """
    if len(source.words) != len(target.words):
        raise WordsError(
            f"'{source.text}' has {len(source.words)} words and '{target.text}' "
            f"{len(target.words)} - expected as many, to replace word by word. Write as many "
            "words, or use align: refine."
        )
    _check_none_is_cut(source, target)
    mapping = torch.zeros(target.length, target.length)
    mapping[0, 0] = 1.0
    for theirs, ours in zip(source.tokens_of, target.tokens_of, strict=True):
        if len(theirs) == len(ours):
            mapping[list(theirs), list(ours)] = 1.0
        elif ours:
            mapping[torch.tensor(theirs, dtype=torch.long)[:, None], list(ours)] = 1.0 / len(ours)
    # The end token, and padding by its distance from it.
    shift = len(source.ids) - len(target.ids)
    for position in range(len(target.ids) - 1, target.length):
        mapping[min(position + shift, target.length - 1), position] = 1.0
    return mapping


def refinement_map(
    source: PromptTokens, target: PromptTokens
) -> tuple[Int[Tensor, " length"], Float[Tensor, " length"]]:
    """For each token of the target its source token, and 1 where it has one.

    ``A_hat = alpha A_source[..., m] + (1 - alpha) A_target``. Tokens that are new have m = 0 and
    alpha = 0. Positions behind the target's end token keep their place.
    """
    positions, alphas = torch.arange(target.length), torch.ones(target.length)
    for position, partner in enumerate(_align(source.ids, target.ids)):
        positions[position] = max(partner, 0)
        alphas[position] = float(partner >= 0)
    return positions, alphas


def _align(source: tuple[int, ...], target: tuple[int, ...]) -> list[int]:
    """Needleman-Wunsch: the partner of each target token, or -1.

    Of equally good alignments, a new target token goes before a dropped source token, and that
    before a pair, which decides what repeated words are aligned with.
    """
    rows, columns = len(source) + 1, len(target) + 1
    score = [[0] * columns for _ in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            pair = score[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            score[i][j] = max(score[i][j - 1], score[i - 1][j], pair)
    partners, i, j = [-1] * len(target), len(source), len(target)
    while j > 0:
        if i == 0 or score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            partners[j] = i
    return partners


def _check_none_is_cut(source: PromptTokens, target: PromptTokens) -> None:
    """A word without a source would get no attention at all."""
    pairs = zip(source.tokens_of, target.tokens_of, strict=True)
    for place, (theirs, ours) in enumerate(pairs):
        if ours and not theirs:
            raise WordsError(
                f"'{target.words[place]}' of the prompt '{target.text}' takes the place of "
                f"'{source.words[place]}' of '{source.text}', which lies behind the "
                f"{source.length} tokens that the text encoder reads - expected it among them. "
                "Shorten the source prompt, or use align: refine."
            )


def _places(prompt: PromptTokens, word: str) -> list[int]:
    """Places of all words that a word, or words in a row, stands for."""
    starts = phrase_starts(prompt.words, word)
    if not starts:
        near = difflib.get_close_matches(word.lower(), map(bare_word, prompt.words), n=1)
        hint = f" Did you mean '{near[0]}'?" if near else " Use a word of the prompt."
        raise WordsError(
            f"'{word}' is not in the prompt '{prompt.text}' - expected one of its words, or its "
            f"number.{hint}"
        )
    return sorted({k + n for k in starts for n in range(len(word.split()))})
