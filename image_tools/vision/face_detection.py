"""BlazeFace (arXiv 1907.05047): boxes and six rough landmarks of faces in a square picture.

The network compares 896 anchors, two in each cell of a 16 x 16 grid and six in each of an 8 x 8
one, and gives a logit, a box and six points for each, in pixels from the anchor. Boxes that overlap
are blended with their scores as weights (section 3.4), which holds still where plain suppression
jumps from one to the next.

    raw = net(images)["objects"]                          # images [b, 128, 128, 3] in 0..1
    detections = decode_detections(raw[0], min_score=0.5)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Detections", "anchor_centers", "blend_overlapping", "box_overlap", "decode_detections"]

INPUT_SIZE = 128
# Cells along a side, and anchors in each cell.
GRIDS = ((16, 2), (8, 6))
POINTS = 6
MIN_OVERLAP = 0.3
MAX_LOGIT = 100.0


@dataclass(frozen=True)
class Detections:
    """Faces, the surest first; lengths are shares of the picture's side."""

    scores: Float[Tensor, " n"]
    boxes: Float[Tensor, "n 4"]
    """Left, top, right, bottom."""
    points: Float[Tensor, "n 6 2"]
    """Eyes (left and right in the picture), nose, mouth, and the ears (left and right)."""

    def __len__(self) -> int:
        return len(self.scores)


def anchor_centers() -> Float[Tensor, "896 2"]:
    """x and y of the anchors, as shares of the side, in the network's order."""
    grids = []
    for cells, count in GRIDS:
        places = (torch.arange(cells) + 0.5) / cells
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        grids.append(
            torch.stack([columns, rows], dim=-1).reshape(-1, 2).repeat_interleave(count, 0)
        )
    return torch.cat(grids)


def decode_detections(raw: Float[Tensor, "896 17"], *, min_score: float) -> Detections:
    """Faces of one picture, of what the network says of it.

    Args:
        raw: the network's output.
        min_score: what is less sure is left out.
    """
    scores = raw[:, 0].clamp(-MAX_LOGIT, MAX_LOGIT).sigmoid()
    kept = scores >= min_score
    center = anchor_centers().to(raw)[kept]
    values = raw[kept, 1:] / INPUT_SIZE
    middle, half = center + values[:, :2], values[:, 2:4] / 2.0
    boxes = torch.cat([middle - half, middle + half], dim=1)
    points = center[:, None] + values[:, 4:].unflatten(1, (POINTS, 2))
    return blend_overlapping(Detections(scores[kept], boxes, points))


def blend_overlapping(detections: Detections) -> Detections:
    """One face of all detections that overlap the surest of them."""
    left = detections.scores.argsort(descending=True)
    scores, boxes, points = [], [], []
    while len(left):
        joins = box_overlap(detections.boxes[left[0]], detections.boxes[left]) >= MIN_OVERLAP
        joins[0] = True  # a box without area overlaps nothing
        group = left[joins]
        weights = detections.scores[group] / detections.scores[group].sum()
        scores.append(detections.scores[left[0]])
        boxes.append(weights @ detections.boxes[group])
        points.append(torch.einsum("n,npc->pc", weights, detections.points[group]))
        left = left[~joins]
    if not scores:
        return detections
    return Detections(torch.stack(scores), torch.stack(boxes), torch.stack(points))


def box_overlap(box: Float[Tensor, "4"], others: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    """Intersection over union of a box with others."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp(min=0.0).prod(dim=1)
    areas = (others[:, 2:] - others[:, :2]).clamp(min=0.0).prod(dim=1)
    return common / ((box[2:] - box[:2]).clamp(min=0.0).prod() + areas - common).clamp(min=1e-12)
