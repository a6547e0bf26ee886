"""Configuration of regional prompts: frozen dataclasses and their grammar, without torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from renderers.errors import StudioError

__all__ = ["RegionConfig", "RegionError", "RegionRect", "RegionalConfig", "parse_ratio"]

RegionMode = Literal["attn_crop", "attn_resize", "latent"]

NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")
GRAMMAR = (
    "Rows are separated by ';', columns by ','. One row: widths, such as '1,2'. Several rows: each "
    "its height, then its widths, such as '1,1,1; 2,1' for two columns above one."
)


class RegionError(StudioError):
    """A layout of regions cannot be read, or does not fit its prompts."""

    exit_code = 2


@dataclass(frozen=True)
class RegionRect:
    """A rectangle as shares of the image."""

    top: float
    bottom: float
    left: float
    right: float


@dataclass(frozen=True)
class RegionConfig:
    """One region of the image and what it shows."""

    prompt: str
    """What the region shows."""
    negative_prompt: str | None = None
    """What it shall not show; empty for the image's own negative prompt."""
    base_ratio: float | None = None
    """Share of the whole image's prompt in this region; empty for the plan's."""


@dataclass(frozen=True)
class RegionalConfig:
    """Prompts by region (RPG, arXiv 2401.11708)."""

    ratio: str
    """Layout of the regions, rows by ';' and columns by ',': '1,1' is two halves side by side,
    '1,1; 1,1' one above the other, '1,1,1; 2,1' two columns above one of twice the height."""
    regions: tuple[RegionConfig, ...]
    """Regions from left to right and from top to bottom."""
    base_ratio: float = 0.5
    """Share beta of the whole image's prompt in every region: 0 each region for itself, 1 the
    plain prior. 0.35 to 0.55 where several things of one kind shall be told apart."""
    common: str = ""
    """Words put in front of every region's prompt."""
    mode: RegionMode = "attn_crop"
    """attn_crop lets each region's prompt see the whole image and keeps its rectangle;
    attn_resize shrinks the whole image into the rectangle (the paper's formula); latent predicts
    the image for each prompt and blends predictions, which costs a call for each region."""

    def __post_init__(self) -> None:
        """Refuse a layout that does not fit its regions, and shares outside of 0..1."""
        count = len(parse_ratio(self.ratio))
        if count != len(self.regions):
            raise RegionError(
                f"ratio '{self.ratio}' makes {count} regions and there are {len(self.regions)} "
                "prompts - expected a prompt for each region. Add or remove one."
            )
        ratios = [self.base_ratio, *(region.base_ratio for region in self.regions)]
        for value in ratios:
            is_share = isinstance(value, int | float) and 0.0 <= value <= 1.0
            if value is not None and not is_share:
                raise RegionError(f"base_ratio is {value!r} - expected 0 to 1, a share.")

    @property
    def base_ratios(self) -> tuple[float, ...]:
        """beta of each region."""
        return tuple(
            self.base_ratio if region.base_ratio is None else region.base_ratio
            for region in self.regions
        )


def parse_ratio(text: str) -> tuple[RegionRect, ...]:
    """Regions of a layout, from left to right and from top to bottom.

    Raises:
        RegionError: naming the part of the text that is no number, or not above 0.
    """
    rows = [[_number(part, text) for part in row.split(",")] for row in text.split(";")]
    if len(rows) == 1:
        rows = [[1.0, *rows[0]]]
    # A row of one value is one column of that height.
    rows = [row if len(row) > 1 else [row[0], 1.0] for row in rows]
    rects = []
    for top, bottom, row in zip(*_bounds([row[0] for row in rows]), rows, strict=True):
        for left, right in zip(*_bounds(row[1:]), strict=True):
            rects.append(RegionRect(top, bottom, left, right))
    return tuple(rects)


def _number(part: str, text: str) -> float:
    part = part.strip()
    value = float(part) if NUMBER.fullmatch(part) else 0.0
    if not 0.0 < value < math.inf:
        what = f"'{part}'" if part else "nothing between separators"
        raise RegionError(f"ratio '{text}' has {what} - expected numbers above 0. {GRAMMAR}")
    return value


def _bounds(sizes: list[float]) -> tuple[list[float], list[float]]:
    """Starts and ends of intervals that fill 0..1."""
    total = sum(sizes)
    ends = [sum(sizes[: k + 1]) / total for k in range(len(sizes))]
    ends[-1] = 1.0
    return [0.0, *ends[:-1]], ends
