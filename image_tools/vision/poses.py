"""MoveNet SinglePose Lightning: 17 keypoints of the person nearest to the middle of a picture.

The network divides a square picture into 48 x 48 cells and says of each how likely it is the middle
of a person (``centers``), how likely each keypoint lies in it (``points``), where a person's
keypoints lie as seen from its middle (``regressed``), and where in the cell each lies
(``offsets``), rows before columns. The middle that is sure and near the picture's is taken; each
keypoint is the sure cell near the place that this middle gives, with its offset:

    cell_k = argmax points_k / (|cell - (middle + regressed_k)| + 1.8)

    finder = MoveNetPoses()
    pose = finder.pose(image)                             # image [h, w, 3] in 0..1
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.vision.graph import load_graph
from image_tools.vision.paths import VISION_FOLDER
from renderers.errors import check_shape

__all__ = ["COCO_POINTS", "MoveNetPoses", "decode_pose"]

COCO_POINTS = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)
"""COCO's keypoints in the network's order; right is the person's own."""
CELLS = 48
# Cells at which nearness counts half as much as none.
NEARNESS = 1.8


class MoveNetPoses:
    """Finds the pose of one person."""

    def __init__(self, folder: Path = VISION_FOLDER, *, device: torch.device | None = None) -> None:
        """Read the network.

        Raises:
            WeightsMissing: it is not there.
        """
        self.device = device or torch.device("cpu")
        self.net = load_graph(folder / "movenet-lightning.json").to(self.device)

    @torch.no_grad()
    def pose(self, image: Float[Tensor, "h w 3"]) -> Float[Tensor, "17 3"]:
        """x and y as shares of the picture's width and height, and how sure each keypoint is.

        There is always a pose: where nobody is, nothing of it is sure.

        Raises:
            ShapeError: if it is no picture.
        """
        check_shape("image", image, "H W 3")
        height, width = image.shape[:2]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        pixels = image.to(self.device, torch.float32).movedim(-1, 0)[None]
        square = F.pad(pixels, (left, side - width - left, top, side - height - top))
        size = (self.net.settings.size,) * 2
        small = F.interpolate(square, size, mode="bilinear", antialias=True).movedim(1, -1)
        found = decode_pose(self.net(small.clamp(0.0, 1.0)))[0].cpu()
        place = (found[:, :2] * side - torch.tensor([left, top])) / torch.tensor([width, height])
        return torch.cat([place, found[:, 2:]], dim=1)


def decode_pose(outputs: Mapping[str, Tensor]) -> Float[Tensor, "b 17 3"]:
    """x and y as shares of the square picture's side, and the score, of what the network says."""
    points, offsets = outputs["points"], outputs["offsets"].unflatten(-1, (-1, 2))
    rows, columns = torch.meshgrid(*[torch.arange(CELLS).to(points)] * 2, indexing="ij")
    cells = torch.stack([rows, columns], dim=-1)
    central = (cells - CELLS // 2).norm(dim=-1)
    sure = (outputs["centers"][..., 0] / (central + NEARNESS)).flatten(1).argmax(dim=1)
    batch = torch.arange(len(points), device=points.device)
    regressed = outputs["regressed"].flatten(1, 2)[batch, sure].unflatten(-1, (-1, 2))
    expected = cells.flatten(0, 1)[sure][:, None] + regressed
    away = (cells[None, :, :, None] - expected[:, None, None]).norm(dim=-1)
    chosen = (points / (away + NEARNESS)).flatten(1, 2).argmax(dim=1)
    kinds = torch.arange(chosen.shape[1], device=points.device)
    inside = offsets.flatten(1, 2)[batch[:, None], chosen, kinds]
    place = (cells.flatten(0, 1)[chosen] + inside) / CELLS
    score = points.flatten(1, 2)[batch[:, None], chosen, kinds]
    return torch.cat([place.flip(-1), score[..., None]], dim=-1)
