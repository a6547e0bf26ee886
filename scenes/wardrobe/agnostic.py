"""What of a person is painted anew for any garment of a category, exactly.

It is made of the body under the clothes and of the clothes' own pixels, widened, without what
stays: head, hair, hands, shoes and the other garment. Arms belong to it for tops, legs for
bottoms, whatever is worn, so that it hardly tells the old garment's length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from scenes.wardrobe.garments import LOWER, UPPER
from scenes.wardrobe.labels import ATR, DENSEPOSE
from scenes.wardrobe.render import Buffers

__all__ = ["painted_anew"]

REACH = 0.03
"""How far it goes beyond body and clothes, as a share of the rows."""
KEPT = ("hair", "left foot", "right foot")
TOP_PARTS = ("torso", *(f"{s} {n}" for s in ("right", "left") for n in ("upper arm", "forearm")))
LOW_PARTS = tuple(f"{s} {n}" for s in ("right", "left") for n in ("thigh", "shin"))
STAYING = ("right hand", "left hand", "head")


def painted_anew(buffers: Buffers, target: Int[Tensor, " b"]) -> Bool[Tensor, "b h w"]:
    """Where each person is painted anew.

    Args:
        buffers: of the people in what they wear.
        target: category of the garment.
    """
    is_low, is_high = (target == LOWER)[:, None, None], (target == UPPER)[:, None, None]
    parts, atr, cloth = buffers.densepose, buffers.atr, buffers.cloth
    top = _among(parts, TOP_PARTS) | (cloth == 1)
    low = _among(parts, LOW_PARTS) | (cloth == 2)
    area = torch.where(is_low, low | (cloth == 2), top | (low & ~is_high))
    area = _widened(area, max(1, round(REACH * parts.shape[1])))
    face = _among(parts, ("head",)) & (atr == ATR["face"]) & ~_neck(buffers)
    kept = face | _among(parts, STAYING[:2])
    kept |= torch.isin(atr, torch.tensor([ATR[name] for name in KEPT], device=atr.device))
    other = torch.where(is_low, cloth == 1, is_high & (cloth == 2))
    return area & ~kept & ~other


def _among(parts: Tensor, names: tuple[str, ...]) -> Tensor:
    ids = sorted({number for name in names for number in DENSEPOSE[name]})
    return torch.isin(parts, torch.tensor(ids, device=parts.device))


def _neck(buffers: Buffers) -> Tensor:
    """LIP tells the neck from the face."""
    return buffers.lip == 10


def _widened(mask: Tensor, radius: int) -> Tensor:
    size = 2 * radius + 1
    return F.max_pool2d(mask[:, None].float(), size, stride=1, padding=radius)[:, 0] > 0.5
