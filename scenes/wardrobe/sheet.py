"""Contact sheets of pairs, to be looked at.

image = pair_sheet(draw_pairs(PairConfig(height=128), split="train", first=0, count=8))
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scenes.wardrobe.samples import Pairs

__all__ = ["label_colors", "pair_sheet"]

GREY = 0.5
HUE_STEP = 0.618034  # neighbouring numbers get colours far apart


def pair_sheet(pairs: Pairs) -> Float[Tensor, "h w 3"]:
    """A column for each pair: worn, product, repainted part, other product, truth, labels, body."""
    hidden = torch.where(pairs.mask[..., None], GREY, pairs.worn.rgb)
    rows = [pairs.worn.rgb, pairs.product, hidden]
    rows += [] if pairs.worn_other is None else [pairs.product_other, pairs.worn_other.rgb]
    rows += [label_colors(pairs.worn.atr), label_colors(pairs.worn.densepose)]
    return torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0)


def label_colors(labels: Int[Tensor, "b h w"]) -> Float[Tensor, "b h w 3"]:
    """A colour for each number, black for 0."""
    hue = labels * HUE_STEP
    shades = [0.5 + 0.45 * torch.cos(6.2832 * (hue + k / 3.0)) for k in range(3)]
    return torch.stack(shades, dim=-1) * (labels > 0)[..., None]
