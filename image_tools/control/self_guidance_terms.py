"""Edits of self-guidance as sums of differences to a reference (arXiv 2306.00986, section 3.2).

    move, resize      w2 |T(shape_ref(k)) - shape(k)| + w2 |T(centroid or size of k) - own|
                      + w0 sum over others |shape_ref - shape| + w1 sum over all |app_ref - app|
    copy appearance   w1 |app_ref(k) - app(k)|
    copy layout, restyle   w0 |shape_ref - shape|

as means over layers, places and channels, of absolute differences (L1) or of squared ones (L2). A
thing is one or several words; its map is the mean of its tokens' maps. A word counts wherever it
stands in either prompt; a number is one word of the image's prompt, and in the reference's prompt
the word that is aligned with it. Deviation: published code moves the reference's hard mask; here it
is the soft shape, as the paper's formula has it, so that an edit that changes nothing has no
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.image_properties import appearance, centroid, shape, size, transformed
from image_tools.control.self_guidance_configs import (
    CopyAppearanceConfig,
    CopyLayoutConfig,
    MoveConfig,
    ResizeConfig,
    RestyleConfig,
    SelfGuidanceEdit,
)
from image_tools.editing.align import PromptTokens, WordsError, refinement_map, word_tokens
from renderers.errors import ShapeError

__all__ = ["Observed", "Term", "edit_terms", "energy"]

Tokens = tuple[int, ...]
Distance = Literal["l1", "l2"]


@dataclass(frozen=True)
class Observed:
    """What one image's denoiser call showed."""

    maps: tuple[Float[Tensor, "length _ _"], ...]
    """Attention to each token, by layer, each of its own rows and columns."""
    features: Float[Tensor, "c h w"]
    """Output of the denoiser's part that holds the appearance."""


@dataclass(frozen=True)
class Term:
    """One difference between an image's thing and a reference's."""

    kind: Literal["shape", "centroid", "size", "appearance"]
    mine: Tokens
    theirs: Tokens
    weight: float
    shift: tuple[float, float] = (0.0, 0.0)
    """What is added to the reference's place."""
    scale: float = 1.0
    """What the reference's width and height are multiplied by."""


def edit_terms(
    edits: Sequence[SelfGuidanceEdit], prompt: PromptTokens, reference: PromptTokens
) -> tuple[Term, ...]:
    """All terms of a list of edits.

    Raises:
        WordsError: a word is not in its prompt, or there is nothing to keep.
    """
    return tuple(term for edit in edits for term in _terms(edit, prompt, reference))


def energy(
    terms: Sequence[Term], mine: Observed, theirs: Observed, *, distance: Distance = "l1"
) -> Float[Tensor, ""]:
    """g, the weighted sum of all differences.

    Args:
        terms: of a list of edits.
        mine: what the image's denoiser call showed.
        theirs: what the reference's did.
        distance: mean of absolute differences, or of squared ones.

    Raises:
        ShapeError: if image and reference have different sizes.
    """
    sizes = [[tuple(m.shape[1:]) for m in seen.maps] for seen in (mine, theirs)]
    if sizes[0] != sizes[1]:
        raise ShapeError(
            f"The image's attention has sizes {sizes[0]}, the reference's {sizes[1]}, expected the "
            "same. Record the reference at the same image size."
        )
    total = mine.features.new_zeros(())
    for term in terms:
        total = total + term.weight * _difference(term, mine, theirs, distance)
    return total


def _difference(term: Term, mine: Observed, theirs: Observed, distance: Distance) -> Tensor:
    if term.kind == "appearance":
        looks = [
            appearance(_thing(seen.maps[-1], tokens), seen.features)
            for seen, tokens in ((mine, term.mine), (theirs, term.theirs))
        ]
        return _mean(looks[0] - looks[1], distance)
    parts = []
    for own, other in zip(mine.maps, theirs.maps, strict=True):
        own, other = _thing(own, term.mine), _thing(other, term.theirs)
        if term.kind == "shape":
            wanted = shape(other)
            if term.shift != (0.0, 0.0) or term.scale != 1.0:
                wanted = transformed(wanted, shift=term.shift, scale=term.scale)
            found = shape(own)
        elif term.kind == "centroid":
            found, wanted = centroid(own), centroid(other) + other.new_tensor(term.shift)
        else:
            found, wanted = size(own), (size(other) * term.scale**2).clamp(max=1.0)
        parts.append(_mean(found - wanted, distance))
    return torch.stack(parts).mean()


def _mean(differences: Tensor, distance: Distance) -> Tensor:
    return differences.abs().mean() if distance == "l1" else differences.square().mean()


def _thing(maps: Float[Tensor, "length h w"], tokens: Tokens) -> Float[Tensor, "1 h w"]:
    return maps[list(tokens)].mean(dim=0, keepdim=True)


def _terms(edit: SelfGuidanceEdit, prompt: PromptTokens, reference: PromptTokens) -> list[Term]:
    if isinstance(edit, MoveConfig | ResizeConfig):
        return _rearranging(edit, prompt, reference)
    if isinstance(edit, RestyleConfig):
        pairs = _words_in_both(prompt, reference)
        wanted = _tokens(prompt, edit.words)
        kept = [pair for pair in pairs if not edit.words or set(pair[0]) <= set(wanted)]
        if not kept:
            raise WordsError(
                f"Restyle keeps none of the words of '{prompt.text}' - expected words that the "
                f"reference's prompt '{reference.text}' has as well. Name others."
            )
        return [Term("shape", *pair, edit.weight / len(kept)) for pair in kept]
    kinds = {CopyAppearanceConfig: "appearance", CopyLayoutConfig: "shape"}
    if edit.source_words:
        theirs = _tokens(reference, edit.source_words)
    else:
        theirs = _counterparts(edit.words, prompt, reference)
    return [Term(kinds[type(edit)], _tokens(prompt, edit.words), theirs, edit.weight)]


def _rearranging(
    edit: MoveConfig | ResizeConfig, prompt: PromptTokens, reference: PromptTokens
) -> list[Term]:
    mine, theirs = _tokens(prompt, edit.words), _counterparts(edit.words, prompt, reference)
    others = [p for p in _words_in_both(prompt, reference) if not set(p[0]) & set(mine)]
    if isinstance(edit, MoveConfig):
        own = [
            Term("shape", mine, theirs, edit.weight, shift=edit.shift),
            Term("centroid", mine, theirs, edit.weight, shift=edit.shift),
        ]
    else:
        own = [
            Term("shape", mine, theirs, edit.weight, scale=edit.scale),
            Term("size", mine, theirs, edit.weight, scale=edit.scale),
        ]
    keep = [Term("shape", *pair, edit.keep_weight / len(others)) for pair in others]
    everything = [(mine, theirs), *others]
    weight = edit.appearance_weight / len(everything)
    return [*own, *keep, *(Term("appearance", *pair, weight) for pair in everything)]


def _tokens(prompt: PromptTokens, words: Sequence[str | int]) -> Tokens:
    return tuple(t for word in words for t in word_tokens(prompt, word))


def _counterparts(
    words: Sequence[str | int], prompt: PromptTokens, reference: PromptTokens
) -> Tokens:
    """The reference's tokens of words that are named in the image's prompt.

    Raises:
        WordsError: a word is not in the reference's prompt, or the word at a place has no partner
            there: counting in both prompts could name two different things.
    """
    positions, alphas = refinement_map(reference, prompt)
    found: list[int] = []
    for word in words:
        if not isinstance(word, int):
            found += word_tokens(reference, word)
            continue
        own = list(word_tokens(prompt, word))
        if not alphas[own].all():
            raise WordsError(
                f"Word number {word} of the prompt '{prompt.text}' is '{prompt.words[word]}', "
                f"which the reference's prompt '{reference.text}' does not have there - expected a "
                "word that both have. Name words of both prompts, or for copies source_words."
            )
        found += positions[own].tolist()
    return tuple(found)


def _words_in_both(prompt: PromptTokens, reference: PromptTokens) -> list[tuple[Tokens, Tokens]]:
    """Tokens of the words that both prompts share."""
    positions, alphas = refinement_map(reference, prompt)
    return [
        (tokens, tuple(positions[list(tokens)].tolist()))
        for tokens in prompt.tokens_of
        if tokens and alphas[list(tokens)].all()
    ]
