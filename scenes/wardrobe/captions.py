"""What garments are in words: the tags that try-on data sets have, and short captions of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scenes.wardrobe.garments import DRESS, LOWER, NECKLINES, PATTERNS, SLEEVES, Garments

__all__ = ["COLOR_WORDS", "describe_garments", "garment_tags"]

COLOR_WORDS = {
    "red": (0.80, 0.12, 0.12),
    "orange": (0.93, 0.52, 0.10),
    "brown": (0.45, 0.27, 0.13),
    "yellow": (0.92, 0.86, 0.20),
    "olive": (0.45, 0.48, 0.15),
    "green": (0.15, 0.60, 0.20),
    "teal": (0.10, 0.55, 0.55),
    "light blue": (0.45, 0.70, 0.95),
    "blue": (0.12, 0.25, 0.85),
    "navy": (0.08, 0.10, 0.40),
    "purple": (0.48, 0.15, 0.72),
    "pink": (0.95, 0.50, 0.72),
    "white": (0.95, 0.95, 0.95),
    "black": (0.08, 0.08, 0.09),
    "grey": (0.55, 0.55, 0.56),
}
MARKS = {
    "horizontal stripes": "horizontally striped",
    "vertical stripes": "vertically striped",
    "checks": "checked",
    "dots": "dotted",
}
LENGTH_WORDS = {0.45: "short", 0.75: "knee length", 1.0: "long"}


def garment_tags(garments: Garments) -> list[dict[str, str]]:
    """Sleeve length, neckline and item of each garment, as VITON-HD's tags have them."""
    rows = []
    for k in range(len(garments)):
        is_lower = int(garments.category[k]) == LOWER
        rows.append(
            {
                "sleeveLength": "" if is_lower else SLEEVES[int(garments.sleeve[k])],
                "neckLine": "" if is_lower else NECKLINES[int(garments.neckline[k])],
                "item": _item(garments, k),
            }
        )
    return rows


def describe_garments(garments: Garments) -> tuple[str, ...]:
    """A caption of each, such as "a red and white dotted short sleeve round neck top"."""
    colors = [_color_word(garments.colors[:, k]) for k in range(2)]
    captions = []
    for k, tags in enumerate(garment_tags(garments)):
        pattern = PATTERNS[int(garments.pattern[k])]
        words = [colors[0][k]]
        if pattern != "solid":
            two = colors[1][k]
            words += [f"and {two} {MARKS[pattern]}" if two != words[0] else MARKS[pattern]]
        if tags["sleeveLength"]:
            sleeve = tags["sleeveLength"]
            words.append(sleeve if sleeve == "sleeveless" else f"{sleeve} sleeve")
            words.append(f"{tags['neckLine']} neck")
        captions.append(" ".join(["a", *words, tags["item"]]))
    return tuple(captions)


def _item(garments: Garments, k: int) -> str:
    category, length = int(garments.category[k]), round(float(garments.length[k]), 2)
    if category == DRESS:
        return f"{LENGTH_WORDS[length]} dress"
    if category != LOWER:
        return "crop top" if length < 0.5 else "top"
    if bool(garments.skirt[k]):
        return f"{LENGTH_WORDS[length]} skirt"
    return "shorts" if length < 0.5 else "trousers"


def _color_word(colors: Float[Tensor, "b 3"]) -> list[str]:
    table = torch.tensor(list(COLOR_WORDS.values()), device=colors.device)
    nearest = torch.cdist(colors, table).argmin(dim=1).tolist()
    words = list(COLOR_WORDS)
    return [words[index] for index in nearest]
