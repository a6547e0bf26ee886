"""Objects with prompts and places: the scene's layout as a rule sees it.

LayoutObject(BoxConfig((0.0, -0.4, 0.0), (0.6, 0.6, 0.9)), prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guidance.prompts import ViewPrompts
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.align import (
    PromptTokens,
    WordsError,
    tokenize_prompt,
    tokens_at,
    word_tokens,
)
from image_tools.editing.phrases import phrase_starts
from renderers.box_configs import BoxConfig
from renderers.errors import StudioError

__all__ = ["LayoutObject", "ObjectTokens", "check_word_places", "object_tokens"]

ObjectTokens = tuple[tuple[int, ...], ...]
"""Places of the tokens of each object's words."""
ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class LayoutObject:
    """One object of a layout."""

    box: BoxConfig
    """Where it stands."""
    prompts: ViewPrompts
    """What it is, encoded for all views."""


def object_tokens(
    prior: DiffusionPrior, prompt: str, objects: Sequence[LayoutObject]
) -> ObjectTokens:
    """Places of the tokens that name each object in a scene's prompt, its article left out.

    Each object has an occurrence of its own, the first that is free. Longer phrases choose first,
    so that in "a ball left of a red ball" the ball that is not red has the first noun alone.

    Args:
        prior: reads the prompt.
        prompt: the scene's.
        objects: each with a prompt that is a part of the scene's, such as "a red mushroom".

    Raises:
        StudioError: an object's prompt is no part of the scene's, or stands there less often than
            objects are called so.
    """
    tokens = tokenize_prompt(prior.text.tokenizers[0], prompt)
    phrases = [_without_article(item.prompts.prompt) for item in objects]
    found: dict[int, tuple[int, ...]] = {}
    taken: set[int] = set()
    for number in sorted(range(len(phrases)), key=lambda k: -len(phrases[k].split())):
        places = _free_places(tokens, phrases[number], taken)
        taken |= set(places)
        found[number] = tokens_at(tokens, places, phrases[number])
    return tuple(found[number] for number in range(len(phrases)))


def check_word_places(prompts: ViewPrompts) -> None:
    """Refuse templates of views that move the prompt's words.

    Raises:
        StudioError: naming the template.
    """
    words = getattr(getattr(prompts, "config", None), "words", None)
    templates = [] if words is None else [text for text in vars(words).values() if text]
    moved = [text for text in templates if not text.startswith("{prompt}")]
    if moved:
        raise StudioError(
            f"view_prompts.words has '{moved[0]}', which puts words before the prompt - expected "
            "templates that begin with {prompt}, so that an object's words stay where they are."
        )


def _free_places(prompt: PromptTokens, phrase: str, taken: set[int]) -> range:
    """Numbers of a phrase's words where it first stands in words that no other phrase has."""
    starts = phrase_starts(prompt.words, phrase)
    if not starts:
        word_tokens(prompt, phrase)  # says what is wrong with it
    count = len(phrase.split())
    for start in starts:
        if not taken & set(range(start, start + count)):
            return range(start, start + count)
    raise WordsError(
        f"'{phrase}' names other objects wherever it stands in the prompt '{prompt.text}' - "
        "expected words of its own for each object. Name it once more in the scene's prompt, or "
        "give the objects different prompts."
    )


def _without_article(prompt: str) -> str:
    first, _, rest = prompt.strip().partition(" ")
    return rest if rest and first.lower() in ARTICLES else prompt.strip()
