"""Pictures of a try-on scene as a sample: person, garments, mask and body, of one size.

    sample = read_sample(config)

Everything about the person must have the size of the person's picture, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from image_tools.control.pose_images import openpose_points
from image_tools.personalization.photos import PhotosError
from image_tools.tryon.garment_configs import BODY_PARTS
from image_tools.tryon.garment_files import picture_size, read_garment
from image_tools.tryon.label_files import read_labels
from image_tools.tryon.masks import LABELS, BodyMaps, agnostic_mask
from image_tools.tryon.masks_configs import ParseLayout
from image_tools.tryon.pose_files import read_keypoints
from image_tools.tryon.pose_maps import PART_COLORS, part_labels
from image_tools.tryon.samples import Garment, TryOnSample
from image_tools.vision.poses import MoveNetPoses
from studio.errors import ConfigError, StudioError
from studio.images.configs import TryOnConfig
from studio.images.reading import read_picture

__all__ = ["read_garments", "read_sample"]

# Rounding of the sides of a picture that was resized.
ASPECT_TOLERANCE = 0.01
WHITE = 0.5


def read_garments(config: TryOnConfig) -> tuple[Garment, ...]:
    """All garments, at the size of the pictures.

    Raises:
        ConfigError: a picture cannot be read.
    """
    garments = []
    for k, one in enumerate(config.garments):
        try:
            garments.append(read_garment(one, config.size))
        except PhotosError as error:
            raise ConfigError(f"garments.{k}.image: {error}") from error
    return tuple(garments)


def read_sample(config: TryOnConfig) -> TryOnSample:
    """One person and what is worn, with a mask that is given or made.

    Raises:
        ConfigError: a picture cannot be read, or has another size than the person's.
        StudioError: keypoints cannot be read, or no mask can be made.
    """
    own = _size_of(config.person, "person")
    height, width = config.size
    if abs(own[1] / own[0] * height / width - 1.0) > ASPECT_TOLERANCE:
        raise ConfigError(
            f"person: '{config.person}' is {own[1]}x{own[0]} pixels - expected the aspect of size, "
            f"{width}x{height}. Crop it, or set size=[{own[0]},{own[1]}]."
        )
    body = config.body
    person = _read_person(config.person, config.size)
    parse = densepose = keypoints = None
    if body.parse is not None:
        labels = _exact(_read_labels, body.parse, "body.parse", own)
        _refuse_other_labels(labels, body.parse, body.layout)
        parse = _nearest(labels, config.size)
    if body.densepose is not None:
        colors = _exact(_read_colors, body.densepose, "body.densepose", own)
        _refuse_numbers(colors, body.densepose)
        densepose = _nearest(colors, config.size)
    if body.keypoints is not None:
        keypoints = _read_points(body.keypoints, own)
    elif body.finder is not None:
        keypoints = _found_points(person, config)
    sample = TryOnSample(
        person,
        read_garments(config),
        torch.ones(1, height, width, 1),
        captions=(config.prompt,),
        densepose=None if densepose is None else densepose / 255.0,
        keypoints=keypoints,
        parse=None if parse is None else parse[..., 0].long(),
    )
    return _masked(sample, config, own)


def _masked(sample: TryOnSample, config: TryOnConfig, own: tuple[int, int]) -> TryOnSample:
    """With the mask that is given, or that is made of what is known of the body."""
    if config.mask is not None:
        colors = _nearest(_exact(_read_colors, config.mask, "mask", own), config.size)
        mask = (colors.mean(dim=-1, keepdim=True) > 255.0 * WHITE).float()
    else:
        parts = None if sample.densepose is None else part_labels(sample.densepose)[0].numpy()
        points = None if sample.keypoints is None else sample.keypoints[0].numpy()
        maps = BodyMaps(sample.parse[0].numpy(), config.body.layout, points, parts)
        parts_of_body = {BODY_PARTS[one.category] for one in config.garments}
        masks = [agnostic_mask(maps, part, config.masking) for part in sorted(parts_of_body)]
        mask = torch.from_numpy(np.any(masks, axis=0))[None, ..., None].float()
    if not bool(mask.any()):
        raise ConfigError("mask: is black everywhere - expected white where the garment goes.")
    return replace(sample, mask=mask)


def _read_person(path: str, size: tuple[int, int]) -> Float[Tensor, "1 h w 3"]:
    """The picture, whose aspect is known to be right."""
    longer = max(size)
    square = read_picture(path, "person", size=longer, fit="pad")
    top, left = (longer - size[0]) // 2, (longer - size[1]) // 2
    return square[:, top : top + size[0], left : left + size[1]]


def _read_points(path: str, size: tuple[int, int]) -> Float[Tensor, "1 18 3"]:
    try:
        return read_keypoints(Path(path), size)
    except StudioError as error:
        raise ConfigError(f"body.keypoints: {error}") from error


def _refuse_other_labels(labels: Float[Tensor, "1 h w 1"], path: str, layout: ParseLayout) -> None:
    """A number that the layout does not have is another layout's, or no label."""
    last = max(number for numbers in LABELS[layout].values() for number in numbers)
    highest = int(labels.max())
    if highest > last:
        raise ConfigError(
            f"body.parse: '{path}' has a pixel of {highest} - expected labels from 0 to {last}, "
            f"body.layout being {layout}. Correct body.layout, or save the labels' numbers and not "
            "grey levels."
        )


def _refuse_numbers(colors: Float[Tensor, "1 h w 3"], path: str) -> None:
    """Part numbers look nearly black, and models would be shown no body."""
    brightest = int(colors.max())
    if brightest <= len(PART_COLORS):
        raise ConfigError(
            f"body.densepose: '{path}' has no byte above {brightest}, so these are part numbers or "
            "nobody - expected DensePose's parts in colours (dp_segm). part_colors in "
            "image_tools/tryon/pose_maps.py paints numbers."
        )


def _found_points(person: Float[Tensor, "1 h w 3"], config: TryOnConfig) -> Float[Tensor, "1 18 3"]:
    """Keypoints of the person nearest to the middle."""
    pose = MoveNetPoses().pose(person[0])
    points = openpose_points(pose[None], min_score=config.body.min_score)
    if not bool(points[..., 2].any()):
        raise ConfigError(
            f"body.finder: sees nobody in '{config.person}', the surest of 17 points has "
            f"{float(pose[:, 2].max()):.2f} - expected one of body.min_score, "
            f"{config.body.min_score:g}, or more. Lower it, or give body.keypoints."
        )
    return points


def _size_of(path: str, key: str) -> tuple[int, int]:
    """Height and width as the picture is seen."""
    try:
        return picture_size(path)
    except PhotosError as error:
        raise ConfigError(f"{key}: {error}") from error


def _exact(
    read: Callable[[Path], Tensor], path: str, key: str, size: tuple[int, int]
) -> Float[Tensor, "1 h w c"]:
    """A map of the person's picture.

    Raises:
        ConfigError: it cannot be read, has colours in the place of labels, or has another size.
    """
    try:
        values = read(Path(path).expanduser())
    except OSError as error:
        raise ConfigError(f"{key}: '{path}' cannot be read ({error}).") from error
    except StudioError as error:
        raise ConfigError(f"{key}: {error}") from error
    found = tuple(values.shape[1:3])
    if found != size:
        raise ConfigError(
            f"{key}: '{path}' is {found[1]}x{found[0]} pixels - expected {size[1]}x{size[0]}, the "
            "size of the person's picture. Make it of that picture, without resizing."
        )
    return values


def _read_labels(path: Path) -> Float[Tensor, "1 h w 1"]:
    """Numbers of a picture's pixels."""
    return torch.from_numpy(read_labels(path)).float()[None, ..., None]


def _read_colors(path: Path) -> Float[Tensor, "1 h w 3"]:
    """Bytes of a picture's colours."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")).astype(np.float32))[None]


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values.movedim(-1, 1), size, mode="nearest").movedim(1, -1)
