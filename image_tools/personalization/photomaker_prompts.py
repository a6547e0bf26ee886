"""PhotoMaker's trigger word: whom a prompt is about (arXiv 2312.04461); free of torch.

In "a man img, riding a horse" the trigger ``img`` says that the man is the person of the photos. It
stands once, as a word of its own, behind the class word.

    split_trigger("a man img, riding a horse", "img").text        # "a man, riding a horse"
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from renderers.errors import StudioError

__all__ = ["TriggerError", "TriggeredPrompt", "split_trigger"]


class TriggerError(StudioError):
    """A prompt does not say in the right way whom it is about."""

    exit_code = 2


@dataclass(frozen=True)
class TriggeredPrompt:
    """A prompt around its trigger."""

    before: str
    """Ends in the class word."""
    after: str
    """What follows the trigger."""

    @property
    def text(self) -> str:
        """The prompt without the trigger, for what shall not know the person."""
        return self.before + self.after


def split_trigger(prompt: str, trigger: str) -> TriggeredPrompt:
    """The parts of a prompt that names a person once.

    Raises:
        TriggerError: no trigger, several, or one that does not follow a word.
    """
    pieces = re.split(rf"(?<!\w){re.escape(trigger)}(?!\w)", prompt)
    example = f"Write it once, after what the person is: 'a portrait of a man {trigger}'."
    if len(pieces) == 1:
        raise TriggerError(
            f"The prompt '{prompt}' does not hold the trigger word '{trigger}' - expected one, "
            f"which says whom the photos show. {example}"
        )
    if len(pieces) > 2:
        raise TriggerError(
            f"The prompt '{prompt}' holds the trigger word '{trigger}' {len(pieces) - 1} times - "
            f"expected one: the photos are of one person. {example}"
        )
    before, after = pieces[0].rstrip(), pieces[1]
    if not re.search(r"\w$", before):
        found = f"'{before[-1]}'" if before else "nothing"
        raise TriggerError(
            f"The trigger word '{trigger}' in '{prompt}' follows {found} - expected a class word "
            f"such as man, woman, boy, girl or person. {example}"
        )
    return TriggeredPrompt(before, after)
