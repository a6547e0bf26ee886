"""Objects with prompts and places: the scene's layout as a rule sees it.

LayoutObject(BoxConfig((0.0, -0.4, 0.0), (0.6, 0.6, 0.9)), prompts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guidance.prompts import ViewPrompts
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.align import tokenize_prompt, word_tokens
from renderers.box_configs import BoxConfig
from renderers.errors import StudioError

__all__ = ["LayoutObject", "check_word_places", "object_tokens"]

ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class LayoutObject:
    """One object of a layout."""

    box: BoxConfig
    """Where it stands."""
    prompts: ViewPrompts
    """What it is, encoded for all views."""


def object_tokens(
    prior: DiffusionPrior, scene: ViewPrompts, objects: Sequence[LayoutObject]
) -> tuple[tuple[int, ...], ...]:
    """Places of the tokens that name each object in the scene's prompt, its article left out.

    Args:
        prior: reads the prompt.
        scene: the scene's prompts.
        objects: each with a prompt that is a part of the scene's, such as "a red mushroom".

    Raises:
        StudioError: an object's prompt is no part of the scene's, or views put words before it.
    """
    check_word_places(scene)
    tokens = tokenize_prompt(prior.text.towers[0].tokenizer, scene.prompt)
    return tuple(word_tokens(tokens, _without_article(item.prompts.prompt)) for item in objects)


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


def _without_article(prompt: str) -> str:
    first, _, rest = prompt.strip().partition(" ")
    return rest if rest and first.lower() in ARTICLES else prompt.strip()
