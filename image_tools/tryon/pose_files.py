"""Keypoints from OpenPose's JSON files: 25 of BODY_25 or 18 of COCO, in pixels of the picture.

keypoints = read_keypoints(Path("person_keypoints.json"), (1024, 768))
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.tryon.samples import KEYPOINT_NAMES
from renderers.errors import StudioError

__all__ = ["read_keypoints", "read_people"]

COCO, BODY_25 = len(KEYPOINT_NAMES), 25
# COCO's eighteen among BODY_25, which has the middle of the hips at 8.
OF_BODY_25 = (*range(8), *range(9, 19))
# Data sets write points that are not seen at the picture's first pixel.
UNSEEN = 1.0


def read_keypoints(path: Path, size: tuple[int, int]) -> Float[Tensor, "1 18 3"]:
    """Keypoints of the first person, as ``TryOnSample`` has them.

    Args:
        path: a JSON file.
        size: height and width of the picture that the file is about.

    Raises:
        StudioError: it cannot be read, or is about nobody.
    """
    return read_people(path, size)[:1]


def read_people(path: Path, size: tuple[int, int]) -> Float[Tensor, "n 18 3"]:
    """Keypoints of everybody: column and row as shares of width and height, 1 where known.

    Args:
        path: a JSON file.
        size: height and width of the picture that the file is about.

    Raises:
        StudioError: it cannot be read, or is about nobody.
    """
    expected = "expected OpenPose's JSON: people, and in it pose_keypoints_2d with x, y, confidence"
    try:
        people = json.loads(path.expanduser().read_text(encoding="utf-8"))["people"]
        numbers = torch.tensor([one["pose_keypoints_2d"] for one in people], dtype=torch.float32)
        points = numbers.reshape(len(people), -1, 3)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise StudioError(
            f"Keypoints in '{path}' cannot be read ({type(error).__name__}: {error}) - {expected}."
        ) from error
    count = points.shape[1]
    if count not in (COCO, BODY_25):
        raise StudioError(
            f"'{path}' has {count} keypoints - expected {COCO} (COCO) or {BODY_25} (BODY_25)."
        )
    if count == BODY_25:
        points = points[:, list(OF_BODY_25)]
    seen = (points[..., 2] > 0.0) & (points[..., :2] > UNSEEN).any(dim=-1)
    shares = (points[..., :2] + 0.5) / torch.tensor([size[1], size[0]])
    return torch.cat([shares, seen[..., None].float()], dim=-1)
