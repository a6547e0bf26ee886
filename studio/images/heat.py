"""Heat maps of words over pictures: where the prior sees what the prompt says.

    sheet = heat_sheet(prior, rows, config.word_maps, title=config.prompt)

A word that a picture's prompt lacks leaves its field empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.align import WordsError, tokenize_prompt, word_tokens
from image_tools.editing.word_maps import word_maps
from studio.contact_sheet import contact_sheet, shown_at
from studio.images.picture import Picture, noise_of

__all__ = ["HeatRow", "check_words", "heat_sheet", "overlay"]

GREY = 0.55  # brightness of the picture below its map, so that the map glows
WARM, HOT = (0.85, 0.15, 0.1), (1.0, 0.95, 0.5)
ABSENT = 0.96  # grey of a cell whose prompt has no such word


@dataclass(frozen=True)
class HeatRow:
    """One picture of the sheet."""

    name: str
    picture: Picture
    seed: int


def check_words(prior: DiffusionPrior, prompts: Sequence[str], words: Sequence[str]) -> None:
    """Refuse words that no prompt has.

    Raises:
        WordsError: naming the first one.
    """
    for word in words:
        if not any(_has(prior, prompt, word) for prompt in prompts):
            tokens = tokenize_prompt(prior.text.tokenizers[0], prompts[0])
            try:
                word_tokens(tokens, word)
            except WordsError as error:
                raise WordsError(f"word_maps: {error}") from None


@torch.no_grad()
def heat_sheet(
    prior: DiffusionPrior, rows: Sequence[HeatRow], words: Sequence[str], *, side: int, title: str
) -> Float[Tensor, "height width 3"]:
    """Pictures and, beside each, the maps of its words; a word that a prompt lacks stays grey.

    Args:
        prior: sees the pictures.
        rows: pictures with prompts.
        words: to be shown, one column each.
        side: of each picture, pixels.
        title: a headline.
    """
    lines = []
    for row in rows:
        image, prompt = row.picture.image, row.picture.prompt
        own = [word for word in words if _has(prior, prompt, word)]
        latents = prior.encode_images(image[None])
        maps = word_maps(prior, latents, prompt, own, generator=noise_of(row.seed)) if own else ()
        by_word = dict(zip(own, maps, strict=True))
        (shown,) = shown_at(image[None], side)
        blank = torch.full_like(shown, ABSENT)
        cells = [overlay(shown, by_word[word][0]) if word in by_word else blank for word in words]
        lines.append([shown, *cells])
    return contact_sheet(
        lines,
        rows=[row.name for row in rows],
        columns=["picture", *words],
        title=title,
        subtitle="attention to words in the finished pictures; empty: not in the prompt",
    )


def overlay(
    image: Float[Tensor, "h w 3"], heat: Float[Tensor, "rows columns"]
) -> Float[Tensor, "h w 3"]:
    """A map in colour over a picture in grey."""
    large = F.interpolate(heat[None, None], image.shape[:2], mode="bicubic", antialias=True)
    share = large[0, 0].clamp(0.0, 1.0)[..., None].to(image)
    color = torch.lerp(image.new_tensor(WARM), image.new_tensor(HOT), share)
    grey = image.mean(dim=-1, keepdim=True).expand_as(image)
    return torch.lerp(GREY * grey, color, share)


def _has(prior: DiffusionPrior, prompt: str, word: str) -> bool:
    """Whether a prompt has a word."""
    try:
        word_tokens(tokenize_prompt(prior.text.tokenizers[0], prompt), word)
    except WordsError:
        return False
    return True
