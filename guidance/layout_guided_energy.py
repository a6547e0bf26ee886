"""How far the attention to objects' words is from their boxes: an energy of attention maps.

With A the head-mean attention of image tokens to an object's words and m the seen part of its box,

    inside     (1 - sum m A / sum A)^2                     (layout control, arXiv 2304.03373, Eq. 2)
    centroid   |centroid(A) - centroid(m)|_1               (self-guidance, arXiv 2306.00986)
    size       |mean S(A) - mean m|,   shape   mean |S(A) - m|,   S the soft threshold

as means over layers, summed over objects and views. An object that a view does not see asks for
nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from guidance.layout_guided_configs import LayoutTermsConfig
from image_tools.control.image_properties import centroid, shape, size
from image_tools.diffusion.attention import AttentionCall, AttentionOperation
from image_tools.errors import UnsupportedModel

__all__ = ["WordAttention", "layout_energy"]

EPS = 1e-8
SEEN = 0.002
"""Share of the image below which an object counts as not seen."""


class WordAttention(AttentionOperation):
    """Keeps the head-mean attention of all rows to each token, with gradient."""

    def __init__(self, levels: Sequence[int]) -> None:
        """Watch middle and decoder at some levels."""
        self.levels = tuple(levels)
        self.maps: dict[int, Float[Tensor, "b length h w"]] = {}
        """By layer."""

    def applies_to(self, call: AttentionCall) -> bool:
        """In attention to text of middle and decoder at the levels."""
        layer = call.layer
        return layer.is_cross and layer.place != "down" and layer.level in self.levels

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Remember, change nothing."""
        maps = probabilities.float().mean(dim=1).transpose(1, 2)
        self.maps[call.layer.index] = maps.unflatten(2, call.size)
        return probabilities

    def seen(self) -> list[Float[Tensor, "b length h w"]]:
        """Maps of all layers.

        Raises:
            UnsupportedModel: if no layer was seen.
        """
        if not self.maps:
            raise UnsupportedModel(
                f"levels are {list(self.levels)}, where this denoiser's middle and decoder see no "
                "text - expected others. Change guidance.levels."
            )
        return list(self.maps.values())


def layout_energy(
    terms: LayoutTermsConfig,
    layers: Sequence[Float[Tensor, "b length h w"]],
    tokens: Sequence[Sequence[Sequence[int]]],
    masks: Float[Tensor, "b k height width"],
) -> Float[Tensor, " b"]:
    """g of each view.

    Args:
        terms: weights.
        layers: attention to each token, layer by layer.
        tokens: places of each object's words, by view.
        masks: where each object's box is seen.
    """
    seen = (masks.mean(dim=(-2, -1)) > SEEN).to(masks)
    total = masks.new_zeros(len(masks))
    for maps in layers:
        things = torch.stack([_mean_of(row, places) for row, places in zip(maps, tokens)])
        boxes = F.interpolate(masks, things.shape[-2:], mode="area")
        parts = _differences(things, boxes)
        weighted = sum(getattr(terms, name) * part for name, part in parts.items())
        total = total + (seen * weighted).sum(dim=1) / len(layers)
    return total


def _mean_of(
    maps: Float[Tensor, "length h w"], tokens: Sequence[Sequence[int]]
) -> Float[Tensor, "k h w"]:
    return torch.stack([maps[list(places)].mean(dim=0) for places in tokens])


def _differences(
    things: Float[Tensor, "b k h w"], boxes: Float[Tensor, "b k h w"]
) -> Mapping[str, Float[Tensor, "b k"]]:
    inside = (boxes * things).sum(dim=(-2, -1)) / (things.sum(dim=(-2, -1)) + EPS)
    return {
        "inside": (1.0 - inside).square(),
        "centroid": (centroid(things) - centroid(boxes)).abs().sum(dim=-1),
        "size": (size(things) - boxes.mean(dim=(-2, -1))).abs(),
        "shape": (shape(things) - boxes).abs().mean(dim=(-2, -1)),
    }
