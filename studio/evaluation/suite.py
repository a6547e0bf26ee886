"""The fixed prompts on which methods are compared.

One prompt for each kind of the toybox: 24 in a colour that training shows it in, 8 in a colour that
no training image shows it in.
"""

from __future__ import annotations

from dataclasses import dataclass

from scenes.toybox.captions import plain_caption
from scenes.toybox.objects import ObjectSpec
from scenes.toybox.scene import SceneSpec
from scenes.toybox.splits import is_held_out
from studio.errors import ConfigError

__all__ = ["SUITE", "SuitePrompt", "chosen", "is_held_out_prompt"]


@dataclass(frozen=True)
class SuitePrompt:
    """One prompt of the suite."""

    kind: str
    color: str

    @property
    def prompt(self) -> str:
        """Such as "a purple duck"."""
        return plain_caption(SceneSpec((ObjectSpec(self.kind, self.color),)))

    @property
    def held_out(self) -> bool:
        """Whether training never shows this combination."""
        return is_held_out(self.kind, self.color)


_SEEN = (
    ("fish", "orange"),
    ("rabbit", "brown"),
    ("turtle", "green"),
    ("car", "red"),
    ("train", "black"),
    ("airplane", "yellow"),
    ("sailboat", "blue"),
    ("apple", "red"),
    ("donut", "pink"),
    ("ice_cream", "white"),
    ("hamburger", "brown"),
    ("cupcake", "purple"),
    ("table", "black"),
    ("lamp", "yellow"),
    ("sofa", "purple"),
    ("castle", "white"),
    ("lighthouse", "red"),
    ("tree", "green"),
    ("cactus", "yellow"),
    ("teapot", "blue"),
    ("umbrella", "orange"),
    ("robot", "green"),
    ("snowman", "white"),
    ("teddy_bear", "pink"),
)
_HELD_OUT = (
    ("duck", "purple"),
    ("penguin", "orange"),
    ("rocket", "red"),
    ("mushroom", "red"),
    ("chair", "green"),
    ("house", "pink"),
    ("flower", "purple"),
    ("mug", "orange"),
)
SUITE: tuple[SuitePrompt, ...] = tuple(SuitePrompt(*pair) for pair in _SEEN + _HELD_OUT)
"""The 32 prompts, seen combinations first."""
# Strides that share no factor with 24 and 8, so that a few prompts are of different sorts.
_SEEN_STRIDE, _HELD_OUT_STRIDE = 7, 3


def chosen(limit: int = len(SUITE)) -> tuple[SuitePrompt, ...]:
    """The first ``limit`` prompts in an order of which every part is like the whole.

    One in four is a held-out combination, and neighbours are of different sorts. A larger choice
    holds every smaller one, so more prompts can be added to a comparison later.

    Raises:
        ConfigError: not between 1 and the number of prompts.
    """
    if not 1 <= limit <= len(SUITE):
        raise ConfigError(f"--limit is {limit} - expected 1 to {len(SUITE)} prompts.")
    seen = [_SEEN[k * _SEEN_STRIDE % len(_SEEN)] for k in range(len(_SEEN))]
    held_out = [_HELD_OUT[k * _HELD_OUT_STRIDE % len(_HELD_OUT)] for k in range(len(_HELD_OUT))]
    share = len(SUITE) // len(held_out)
    order = []
    for k in range(len(held_out)):
        some = seen[(share - 1) * k : (share - 1) * (k + 1)]
        order += [some[0], held_out[k], *some[1:]]
    return tuple(SuitePrompt(*pair) for pair in order[:limit])


def is_held_out_prompt(prompt: str) -> bool:
    """Whether training never shows what a prompt of the suite names."""
    return any(item.held_out for item in SUITE if item.prompt == prompt)
