"""Leffa's loss (arXiv 2412.08486, section 3.3): attention to a garment should find the right place.

In a layer of self-attention that also reads a garment (``refbank``), with A the mean over heads of
softmax(Q K_ref^T / (tau sqrt d)) over the garment's tokens alone and C their places in -1..1,

    F = A C,   L = || (x - warp(g, F)) M ||^2

where F is made as large as the picture x, g is the garment's picture, and M is 1 where x shows the
garment. It counts at timesteps below half, in layers of at least 1/32 of the picture's rows, as the
mean over those layers and over M. The authors add it with a weight of 1e-3 late in training, to any
model of this kind; it changes nothing of what is predicted.

    matches = ReferenceMatches(temperature=2.0)
    with attention_operations(unet, [matches]):
        errors = denoising_errors(tool, noisy, condition)
    loss = errors.mean() + 1e-3 * flow_loss(matches, person, garment, worn_mask, t < 500)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.diffusion.attention import AttentionCall, AttentionOperation
from image_tools.diffusion.precision import full_precision
from image_tools.errors import UnsupportedModel

__all__ = ["ReferenceMatches", "flow_loss", "flow_of", "token_places"]

TEMPERATURE = 2.0
LEAST_SHARE = 32  # layers with fewer rows than the picture's over this are too coarse


class ReferenceMatches(AttentionOperation):
    """Keeps which of the reference's tokens each token looks at.

    Attributes:
        maps: attention over the reference's tokens and the layer's rows and columns, by the layer's
            name; of the last call.
    """

    def __init__(self, *, temperature: float = TEMPERATURE, least_rows: int = 1) -> None:
        """Watch layers with at least so many rows of tokens."""
        self.temperature, self.least_rows = temperature, least_rows
        self.maps: dict[str, tuple[Float[Tensor, "rows n m"], tuple[int, int]]] = {}

    def applies_to(self, call: AttentionCall) -> bool:
        """In self-attention that is fine enough."""
        return not call.layer.is_cross and call.size[0] >= self.least_rows

    def needs_heads(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def heads(
        self,
        call: AttentionCall,
        query: Float[Tensor, "rows heads n d"],
        key: Float[Tensor, "rows heads m d"],
        value: Float[Tensor, "rows heads m d"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Look, and change nothing.

        Raises:
            UnsupportedModel: there is no reference of the picture's own size.
        """
        own = query.shape[2]
        if key.shape[2] != 2 * own:
            raise UnsupportedModel(
                f"{call.layer.name} has {key.shape[2] - own} tokens of references beside {own} - "
                "expected one reference of the picture's own size. Leave Leffa's loss out."
            )
        logits = query @ key[:, :, own:].mT / (self.temperature * query.shape[-1] ** 0.5)
        self.maps[call.layer.name] = (logits.softmax(dim=-1).mean(dim=1), call.size)
        return query, key, value, None


def token_places(size: tuple[int, int], like: Tensor) -> Float[Tensor, "n 2"]:
    """Column and row of each token's centre, from -1 to 1 across the picture."""
    rows, columns = ((torch.arange(side) + 0.5) * 2.0 / side - 1.0 for side in size)
    grid = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([grid[1], grid[0]], dim=-1).flatten(0, 1).to(like)


def flow_of(
    attention: Float[Tensor, "b n m"], size: tuple[int, int], picture: tuple[int, int]
) -> Float[Tensor, "b h w 2"]:
    """Where each pixel looks in the reference, from the attention of a layer.

    Args:
        attention: over the reference's tokens.
        size: the layer's rows and columns.
        picture: height and width.
    """
    attention = attention.float()
    with full_precision(attention.device):
        flow = attention @ token_places(size, attention)
    planes = flow.mT.unflatten(2, size)
    return F.interpolate(planes, picture, mode="bilinear").movedim(1, -1)


def flow_loss(
    matches: ReferenceMatches,
    person: Float[Tensor, "b h w 3"],
    garment: Float[Tensor, "b h w 3"],
    worn: Float[Tensor, "b h w 1"],
    counts: Bool[Tensor, " b"],
) -> Float[Tensor, ""]:
    """Mean squared error of the garment that attention would put onto the person.

    Args:
        matches: that watched a call with these rows.
        person: pictures in 0..1.
        garment: the reference's pictures.
        worn: 1 where the person's picture shows the garment.
        counts: rows that count.
    """
    target, source = person.movedim(-1, 1), garment.movedim(-1, 1)
    weights = worn.movedim(-1, 1) * counts.to(worn).reshape(-1, 1, 1, 1)
    total = weights.sum().clamp(min=1.0) * target.shape[1]
    losses = []
    for attention, size in matches.maps.values():
        flow = flow_of(attention.to(target), size, tuple(person.shape[1:3]))
        warped = F.grid_sample(source, flow, padding_mode="border", align_corners=False)
        losses.append(((target - warped).square() * weights).sum() / total)
    return torch.stack(losses).mean()
