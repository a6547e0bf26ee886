"""Pictures brought to the size of a try-on model without being stretched."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from renderers.errors import StudioError, check_shape

__all__ = ["WHITE", "cut_out", "fitted"]

WHITE, GREY = 1.0, 0.5


def fitted(
    images: Float[Tensor, "b h w 3"], size: tuple[int, int], *, around: float = WHITE
) -> Float[Tensor, "b height width 3"]:
    """The whole pictures in the middle of ones of another size.

    Args:
        images: in 0..1.
        size: height and width.
        around: brightness of what is not covered.
    """
    check_shape("images", images, "B H W 3")
    height, width = images.shape[1:3]
    if (height, width) == tuple(size):
        return images
    scale = min(size[0] / height, size[1] / width)
    inner = (max(round(height * scale), 1), max(round(width * scale), 1))
    pixels = F.interpolate(images.movedim(-1, 1), inner, mode="bilinear", antialias=scale < 1.0)
    above, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    edges = (left, size[1] - inner[1] - left, above, size[0] - inner[0] - above)
    return F.pad(pixels, edges, value=around).movedim(1, -1)


def cut_out(
    images: Float[Tensor, "b h w 3"],
    masks: Float[Tensor, "b h w 1"],
    size: tuple[int, int],
    *,
    around: float = GREY,
) -> Float[Tensor, "b height width 3"]:
    """What the masks show, in the middle of plain pictures that it just fits into.

    Args:
        images: in 0..1.
        masks: 1 where the garment is.
        size: height and width.
        around: brightness of what is not covered; BootComp was trained with grey, product pictures
            are white.

    Raises:
        StudioError: if a mask is empty.
    """
    found = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        rows, columns = (mask[..., 0].amax(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        if len(rows) == 0:
            raise StudioError(
                f"Nothing is cut out of picture {number}: its mask is empty. Expected a mask that "
                "is 1 where the garment is."
            )
        box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        shown = torch.lerp(torch.full_like(image, around), image, mask)[box]
        found.append(fitted(shown[None], size, around=around))
    return torch.cat(found)
