"""What of a person is painted anew for any garment of a category, exactly.

It is made of the body under the clothes and of the largest garment of the category, widened, so
that it tells nothing of the garment that is worn: neither its sleeves nor its hem. Head, hair,
hands and shoes stay; for bottoms the top stays, too. Around the waist a top's mask goes over what
is worn below.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from scenes.wardrobe.garments import LOWER, SLEEVES, UPPER
from scenes.wardrobe.labels import ATR, DENSEPOSE, LIP
from scenes.wardrobe.render import Buffers
from scenes.wardrobe.worn import Outfit

__all__ = ["largest_outfit", "painted_anew"]

REACH = 0.03
"""How far it goes beyond body and clothes, as a share of the rows."""
KEPT = ("hair", "left foot", "right foot")
TOP_PARTS = ("torso", *(f"{s} {n}" for s in ("right", "left") for n in ("upper arm", "forearm")))
LOW_PARTS = tuple(f"{s} {n}" for s in ("right", "left") for n in ("thigh", "shin"))
LOOSEST = 0.026


def painted_anew(
    buffers: Buffers, target: Int[Tensor, " b"], largest: Int[Tensor, "b h w"]
) -> Bool[Tensor, "b h w"]:
    """Where each person is painted anew.

    Args:
        buffers: of the people in what they wear.
        target: category of the garment.
        largest: which garment each pixel would show in the outfit of :func:`largest_outfit`.
    """
    is_low, is_high = (target == LOWER)[:, None, None], (target == UPPER)[:, None, None]
    parts, atr = buffers.densepose, buffers.atr
    top = _among(parts, TOP_PARTS) | (largest == 1)
    low = _among(parts, LOW_PARTS) | (largest == 2)
    area = torch.where(is_low, low, torch.where(is_high, top, top | low))
    area = _widened(area, max(1, round(REACH * parts.shape[1])))
    face = (atr == ATR["face"]) & (buffers.lip != LIP["neck"])
    kept = face | _among(parts, ("right hand", "left hand"))
    kept |= torch.isin(atr, torch.tensor([ATR[name] for name in KEPT], device=atr.device))
    return area & ~kept & ~(is_low & (buffers.cloth == 1))


def largest_outfit(outfit: Outfit, target: Int[Tensor, " b"]) -> Outfit:
    """Long sleeves and hems, and skirts; above a bottom that is tried on, a top that ends high."""
    top, bottom = outfit.top, outfit.bottom
    long, loosest = torch.ones_like(top.length), torch.full_like(top.loose, LOOSEST)
    top = replace(
        top,
        length=torch.where(target == LOWER, 0.45, long),
        sleeve=torch.full_like(top.sleeve, len(SLEEVES) - 1),
        loose=loosest,
    )
    bottom = replace(bottom, length=long, skirt=torch.ones_like(bottom.skirt), loose=loosest)
    return Outfit(top, bottom)


def _among(parts: Tensor, names: tuple[str, ...]) -> Tensor:
    ids = sorted({number for name in names for number in DENSEPOSE[name]})
    return torch.isin(parts, torch.tensor(ids, device=parts.device))


def _widened(mask: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    return F.max_pool2d(mask[:, None].float(), size, stride=1, padding=radius)[:, 0] > 0.5
