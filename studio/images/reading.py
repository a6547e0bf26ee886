"""Pictures, conditions and masks from files, each refused by the key that names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from image_tools.control.annotators import canny_image
from image_tools.personalization.photos import PhotosError, load_photo
from image_tools.personalization.photos_configs import PhotosConfig
from studio.errors import ConfigError
from studio.images.configs import (
    ControlImageConfig,
    EditImageConfig,
    ImageTaskConfig,
    ReferenceImageConfig,
    RegionalImageConfig,
    TryOnConfig,
)
from studio.images.detectors import DETECT_SIZE, detected_edges, detected_pose, read_poses
from studio.images.method_configs import (
    CannyConditionConfig,
    ConditionConfig,
    ControlNetMethodConfig,
    NullTextMethodConfig,
    PoseConditionConfig,
    PoseFileConditionConfig,
    PromptToPromptMethodConfig,
    SoftEdgeConditionConfig,
    UniControlNetMethodConfig,
)

__all__ = [
    "check_pictures",
    "check_readable",
    "conditions_of",
    "picture_paths",
    "read_condition",
    "read_mask",
    "read_picture",
]

LOOK_SIZE = 32  # pixels; enough to know that a picture can be read


def read_picture(
    path: str, key: str, *, size: int, fit: str = "crop"
) -> Float[Tensor, "1 size size 3"]:
    """A picture as a square.

    Raises:
        ConfigError: it is absent or damaged.
    """
    try:
        return load_photo(path, size=size, config=PhotosConfig(fit=fit))[None]
    except PhotosError as error:
        raise ConfigError(f"{key}: {error}") from error


def read_condition(
    config: ConditionConfig, key: str, *, size: int
) -> Float[Tensor, "1 size size 3"]:
    """A condition image, as it is or made of a photograph.

    Raises:
        ConfigError: it is absent or damaged, of another size than the prior draws, or shows nobody
            whose pose could be drawn.
        WeightsMissing: the network that makes it is not there.
    """
    if isinstance(config, PoseFileConditionConfig):
        return read_poses(config, key, size=size)
    if isinstance(config, SoftEdgeConditionConfig | PoseConditionConfig):
        looked_at = max(size, DETECT_SIZE)
        photo = read_picture(config.path, f"{key}.path", size=looked_at, fit=config.fit)
        if isinstance(config, SoftEdgeConditionConfig):
            return detected_edges(config, photo, size=size)
        return detected_pose(config, photo, key, size=size)
    if isinstance(config, CannyConditionConfig):
        photo = read_picture(config.path, f"{key}.path", size=size, fit=config.fit)
        return canny_image(photo, low=config.low, high=config.high)
    if config.fit == "exact":
        return _read_exact(config.path, f"{key}.path", size, hint=f", or set {key}.fit=crop")
    return read_picture(config.path, f"{key}.path", size=size, fit=config.fit)


def read_mask(path: str, key: str, *, size: int) -> Float[Tensor, "size size"]:
    """A mask, 1 where the picture is white.

    Raises:
        ConfigError: it is absent or damaged, or of another size than the prior draws.
    """
    return _read_exact(path, key, size, hint="")[0].mean(dim=-1)


def check_pictures(config: ImageTaskConfig) -> None:
    """Refuse pictures and poses that cannot be read, before a run folder is made.

    Raises:
        ConfigError: naming the first one.
    """
    check_readable(picture_paths(config))
    if isinstance(config, ControlImageConfig):
        for key, one in conditions_of(config):
            if isinstance(one, PoseFileConditionConfig):
                read_poses(one, key, size=LOOK_SIZE)


def check_readable(pictures: Iterable[tuple[str, str]]) -> None:
    """Refuse pictures, given with their keys, that cannot be read.

    Raises:
        ConfigError: naming the first one.
    """
    for key, path in pictures:
        read_picture(path, key, size=LOOK_SIZE)


def picture_paths(config: ImageTaskConfig) -> Iterator[tuple[str, str]]:
    """Every picture that a scene names, with its key."""
    if isinstance(config, ControlImageConfig):
        for key, one in conditions_of(config):
            if not isinstance(one, PoseFileConditionConfig):
                yield f"{key}.path", one.path
        is_uni = isinstance(config.method, UniControlNetMethodConfig)
        if is_uni and config.method.content is not None:
            yield "method.content.path", config.method.content.path
    elif isinstance(config, EditImageConfig):
        if config.image is not None:
            yield "image", config.image
        shares = isinstance(config.method, PromptToPromptMethodConfig | NullTextMethodConfig)
        if shares and config.method.mask is not None:
            yield "method.mask", config.method.mask
    elif isinstance(config, TryOnConfig):
        yield from _worn(config)
    elif isinstance(config, ReferenceImageConfig):
        yield from ((f"tool.{key}", path) for key, path in config.tool.pictures())
    elif isinstance(config, RegionalImageConfig):
        yield from ((f"regions.masks.{k}", path) for k, path in enumerate(config.masks))


def _worn(config: TryOnConfig) -> Iterator[tuple[str, str]]:
    """Pictures of a try-on scene."""
    yield from ((f"garments.{k}.image", one.image) for k, one in enumerate(config.garments))
    body = config.body
    others = {
        "person": config.person,
        "mask": config.mask,
        "body.parse": body.parse,
        "body.densepose": body.densepose,
    }
    yield from ((key, path) for key, path in others.items() if path is not None)


def conditions_of(config: ControlImageConfig) -> Iterator[tuple[str, ConditionConfig]]:
    """Every condition of a scene, with its key."""
    method = config.method
    if isinstance(method, ControlNetMethodConfig):
        yield from ((f"method.nets.{k}.condition", n.condition) for k, n in enumerate(method.nets))
    else:
        yield from ((f"method.maps.{k}.condition", m.condition) for k, m in enumerate(method.maps))


def _read_exact(path: str, key: str, size: int, *, hint: str) -> Float[Tensor, "1 size size 3"]:
    picture = read_picture(path, key, size=size)
    with Image.open(Path(path).expanduser()) as image:
        width, height = image.size
    if (width, height) != (size, size):
        raise ConfigError(
            f"{key}: '{path}' is {width}x{height} pixels - expected {size}x{size}, the size that "
            f"the prior draws. Save it at that size{hint}."
        )
    return picture
