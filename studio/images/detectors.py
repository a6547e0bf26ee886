"""Condition images that networks make of photographs: soft edges and poses.

Networks look at more pixels than a small prior draws, as the annotators do that public ControlNets
were trained with; what they find is brought to the prior's size.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from image_tools.control.pose_images import openpose_points, pose_image
from image_tools.tryon.pose_files import read_people
from image_tools.vision.hed import load_hed, soft_edges
from image_tools.vision.poses import MoveNetPoses
from renderers.errors import StudioError
from studio.errors import ConfigError
from studio.images.method_configs import (
    PoseConditionConfig,
    PoseFileConditionConfig,
    SoftEdgeConditionConfig,
)

__all__ = ["detected_edges", "detected_pose", "read_poses"]

DETECT_SIZE = 512
"""Pixels of a side that the networks see at least."""


def detected_edges(
    config: SoftEdgeConditionConfig, photo: Float[Tensor, "1 n n 3"], *, size: int
) -> Float[Tensor, "1 size size 3"]:
    """Soft edges of a photograph.

    Raises:
        WeightsMissing: the network is not there; UnsupportedModel if it is another.
    """
    edges = soft_edges(load_hed(config.weights), photo).movedim(-1, 1)
    return F.interpolate(edges, (size, size), mode="bilinear", antialias=True).movedim(1, -1)


def detected_pose(
    config: PoseConditionConfig, photo: Float[Tensor, "1 n n 3"], key: str, *, size: int
) -> Float[Tensor, "1 size size 3"]:
    """The pose of the person in a photograph.

    Raises:
        ConfigError: no point of a person is sure.
    """
    pose = MoveNetPoses().pose(photo[0])
    people = openpose_points(pose[None], min_score=config.min_score)
    if not bool(people[..., 2].any()):
        raise ConfigError(
            f"{key}.path: nobody is seen in '{config.path}', the surest of 17 points has "
            f"{float(pose[:, 2].max()):.2f} - expected one of {key}.min_score, "
            f"{config.min_score:g}, or more. Name a picture of one person, or lower it."
        )
    return pose_image(people, (size, size))[None]


def read_poses(
    config: PoseFileConditionConfig, key: str, *, size: int
) -> Float[Tensor, "1 size size 3"]:
    """Poses from a file, cut or padded to a square as photographs are.

    Raises:
        ConfigError: the file cannot be read, or is about nobody.
    """
    try:
        people = read_people(Path(config.path), (config.height, config.width))
    except StudioError as error:
        raise ConfigError(f"{key}.path: {error}") from error
    sides = torch.tensor([config.width, config.height], dtype=people.dtype)
    square = sides.min() if config.fit == "crop" else sides.max()
    people[..., :2] = (people[..., :2] - 0.5) * sides / square + 0.5
    return pose_image(people, (size, size))[None]
