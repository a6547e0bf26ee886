"""Attention to several subjects' images at once, each inside of its box (MS-Diffusion, 2406.07209).

Beside the attention to text, cell i of a layer's grid attends to the tokens of all subjects in one
softmax (section 3.3):

    added_i = sum_j s_r(j) softmax_j(q_i k_j / sqrt d + M_ij) v_j,      0 where no subject is

M is -1e4 where i lies outside of token j's box, and for dummy tokens where i lies in any box. So
where boxes overlap their subjects share, and dummies never show. s_r is each subject's scale.

Without boxes, masks come from what the layer itself sees of each subject's words: the mean over
heads, words and the steps so far, stretched to 0..1 over the image, above a threshold.

Deviations: batches and grids that are not square; a box's bounds may miss a cell by 1e-4, since
shares such as 0.6 of 5 cells are not exact in float32.

    cells = box_cells(boxes, (16, 16)).flatten(-2)
    added = subject_attention(query, key, value, cells, scales, dummies=4)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from image_tools.diffusion.attention_calls import AttentionCall, AttentionOperation
from image_tools.diffusion.attention_processor import attend, split_heads
from image_tools.diffusion.modified import rows_of
from image_tools.personalization.ms_diffusion_configs import AutoLayoutConfig

__all__ = [
    "PhraseMaps",
    "SubjectAttention",
    "SubjectRows",
    "box_cells",
    "map_cells",
    "subject_attention",
]

MASKED = -1e4
ROUNDING = 1e-4
RANGE_FLOOR = 1e-5
"""Keeps a map without any contrast from being stretched."""


def box_cells(boxes: Float[Tensor, "*b 4"], size: tuple[int, int]) -> Bool[Tensor, "*b h w"]:
    """Cells of a grid that boxes [x0, y0, x1, y1] in 0..1 touch; none of an empty box."""
    inside = []
    for axis, count in ((1, size[0]), (0, size[1])):
        first = (boxes[..., axis, None] * count + ROUNDING).floor()
        end = (boxes[..., axis + 2, None] * count - ROUNDING).ceil()
        places = torch.arange(count, device=boxes.device)
        inside.append((places >= first) & (places < end))
    return inside[0][..., :, None] & inside[1][..., None, :]


def subject_attention(
    query: Float[Tensor, "rows heads n d"],
    key: Float[Tensor, "rows heads m d"],
    value: Float[Tensor, "rows heads m d"],
    cells: Bool[Tensor, "rows subjects n"],
    scales: Float[Tensor, "rows subjects"],
    *,
    dummies: int,
) -> Float[Tensor, "rows n inner"]:
    """What joins the attention to text.

    Args:
        query: of the layer.
        key: of the dummy tokens, and then of each subject's, all of as many tokens.
        value: of the same tokens.
        cells: where each subject is.
        scales: factor of each subject's probabilities.
        dummies: number of dummy tokens.
    """
    tokens = (key.shape[2] - dummies) // cells.shape[1]
    inside = cells.any(dim=1)
    background = (~inside)[:, None].expand(-1, dummies, -1)
    seen = torch.cat([background, cells.repeat_interleave(tokens, dim=1)], dim=1)
    bias = MASKED * (~seen).transpose(1, 2)[:, None].to(query)
    factors = scales.to(value).repeat_interleave(tokens, dim=1)
    factors = torch.cat([factors.new_ones(len(factors), dummies), factors], dim=1)
    attended = attend(query, key, value * factors[:, None, :, None], bias)
    return attended * inside[..., None].to(attended)


def map_cells(maps: Float[Tensor, "*b n"], threshold: float) -> Bool[Tensor, "*b n"]:
    """Cells in which a map, stretched to 0..1, is above a threshold."""
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    return (maps - low) / (high - low + RANGE_FLOOR) > threshold


@dataclass(frozen=True)
class SubjectRows:
    """The subjects of each row of a batch; where a row has fewer, the rest have empty boxes."""

    tokens: Float[Tensor, "rows subjects n width"]
    boxes: Float[Tensor, "rows subjects 4"]
    """[x0, y0, x1, y1], shares of the image from its left and top; all 0 for nowhere."""
    scales: Float[Tensor, "rows subjects"]
    words: Float[Tensor, "rows subjects length"]
    """1 for the text's tokens that name the subject; all 0 where none does."""

    def __len__(self) -> int:
        return len(self.tokens)

    def repeated(self, rows: int) -> SubjectRows:
        """A batch repeated as a whole to ``rows`` rows."""
        return SubjectRows(*(rows_of(part, rows, "the subjects") for part in self._parts()))

    def kept(self, rows: Bool[Tensor, " rows"]) -> SubjectRows:
        """The same subjects in some rows; in the others they are nothing, and nowhere."""

        def cut(part: Tensor) -> Tensor:
            return part * rows.to(part).reshape(-1, *[1] * (part.ndim - 1))

        return SubjectRows(*map(cut, self._parts()))

    def padded(self, count: int) -> SubjectRows:
        """``count`` subjects, of which those that are new are nowhere."""
        missing = count - self.boxes.shape[1]
        ends = [part.new_zeros(len(self), missing, *part.shape[2:]) for part in self._parts()]
        pairs = zip(self._parts(), ends, strict=True)
        return SubjectRows(*(torch.cat(pair, dim=1) for pair in pairs))

    def below(self, others: list[SubjectRows]) -> SubjectRows:
        """More rows below these."""
        all_parts = zip(*(rows._parts() for rows in (self, *others)), strict=True)
        return SubjectRows(*(torch.cat(parts) for parts in all_parts))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.tokens, self.boxes, self.scales, self.words


class PhraseMaps:
    """Attention to each subject's words, by layer and step of one picture.

    A step before the last one that was seen begins another picture.
    """

    def __init__(self, config: AutoLayoutConfig) -> None:
        """Nothing is seen yet."""
        self.config = config
        self._seen: dict[int, dict[int, Float[Tensor, "rows subjects n"]]] = {}

    def see(
        self,
        layer: int,
        step: int,
        probabilities: Float[Tensor, "rows heads n m"],
        words: Float[Tensor, "rows subjects length"],
    ) -> None:
        """Keep a step's map of a layer, in the place of the same step's before."""
        mean = probabilities.detach()[..., : words.shape[-1]].float().mean(dim=1)
        shares = words.float() / words.float().sum(dim=-1, keepdim=True).clamp(min=1.0)
        before = self._seen.get(layer, {})
        if step < max(before, default=0):
            before = {}
        self._seen[layer] = {**before, step: shares @ mean.transpose(1, 2)}

    def cells(self, layer: int) -> Bool[Tensor, "rows subjects n"] | None:
        """Where the subjects are by all maps of a layer; None while there are too few."""
        maps = list(self._seen.get(layer, {}).values())
        if len(maps) < self.config.start_step:
            return None
        return map_cells(torch.stack(maps).mean(dim=0), self.config.threshold)


class SubjectAttention(AttentionOperation):
    """Adds attention to subjects in every layer that sees the text."""

    def __init__(
        self,
        keys: Mapping[int, nn.Module],
        dummies: Float[Tensor, "1 n width"],
        subjects: SubjectRows,
        *,
        maps: PhraseMaps | None = None,
        step: int = 0,
    ) -> None:
        """Act for the rows of one call.

        Args:
            keys: ``to_k_ip`` and ``to_v_ip`` by the index of their layer.
            dummies: dummy tokens.
            subjects: of each row.
            maps: where attention to words says where subjects are; None for boxes alone.
            step: step of the sampler, for ``maps``.
        """
        self.keys, self.dummies, self.subjects = keys, dummies, subjects
        self.maps, self.step = maps, step

    def applies_to(self, call: AttentionCall) -> bool:
        """In attention to text, where there are keys for images."""
        return call.layer.is_cross and call.layer.index in self.keys

    def needs_heads(self, call: AttentionCall) -> bool:
        """Always, where it applies."""
        return True

    def needs_probabilities(self, call: AttentionCall) -> bool:
        """Where words say where subjects are."""
        return self.maps is not None

    def probabilities(
        self, call: AttentionCall, probabilities: Float[Tensor, "rows heads n m"]
    ) -> Float[Tensor, "rows heads n m"]:
        """Remember, change nothing."""
        if self.maps is not None:
            words = rows_of(self.subjects.words, len(probabilities), "the subjects")
            self.maps.see(call.layer.index, self.step, probabilities, words.to(probabilities))
        return probabilities

    def added(
        self, call: AttentionCall, attn: nn.Module, query: Float[Tensor, "rows heads n d"]
    ) -> Float[Tensor, "rows n inner"]:
        """Attention to the subjects."""
        subjects = self.subjects.repeated(len(query))
        cells = None if self.maps is None else self.maps.cells(call.layer.index)
        if cells is None:
            cells = box_cells(subjects.boxes, call.size).flatten(-2).to(query.device)
        dummies = self.dummies.expand(len(query), -1, -1)
        context = torch.cat([dummies, subjects.tokens.flatten(1, 2).to(dummies)], dim=1)
        own = self.keys[call.layer.index]
        key, value = (
            split_heads(project(context).to(query), attn.heads)
            for project in (own.to_k_ip, own.to_v_ip)
        )
        return subject_attention(
            query, key, value, cells, subjects.scales, dummies=dummies.shape[1]
        )
