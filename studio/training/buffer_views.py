"""A disk cache of toybox views with exact buffers, for adapters that see what a renderer knows.

Views are those of the pocket prior's own data (``scenes.toybox.samples``). The folder is an image
cache with one more array, ``buffers.npy``: depth, normals, edges, kinds and drawn keypoints of each
pixel, as bytes. From these come the condition images of ``image_tools.control.annotators``:

    depth      inverse, near is bright
    normal     of the camera
    edge       outlines and creases of the geometry, not of the pattern
    seg        one colour for each kind of object, ``palette(len(KIND_NAMES))``
    keypoints  centres of named parts that are seen, joined (``studio.training.keypoint_pictures``)

Rendering is resumable, and view k depends only on (seed, k).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from image_tools.control.annotators import (
    depth_image,
    line_image,
    normal_image,
    palette,
    segmentation_image,
)
from scenes.toybox.captions import caption, spoken_view
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES
from scenes.toybox.render import ToyBuffers, ToyGeometry, render_buffers
from scenes.toybox.samples import SampleConfig, ToySampler, random_background, random_cameras
from scenes.toybox.scene import SceneSpec, build_scene
from studio.errors import ConfigError
from studio.training.image_cache import ImageCache
from studio.training.keypoint_pictures import keypoint_picture
from studio.training.render_pool import draw_rows

__all__ = [
    "CONDITIONS",
    "EDGE",
    "BufferViewCache",
    "BufferViewConfig",
    "condition_images",
    "draw_view",
    "render_buffer_views",
    "silhouettes",
]

CONDITIONS: tuple[str, ...] = ("depth", "normal", "edge", "seg", "keypoints")
CHUNK = 500  # views between two saves
DEPTH, NORMAL, EDGE, KIND, KEYPOINTS = 0, slice(1, 4), 4, 5, slice(6, 9)
CHANNELS = 9


@dataclass(frozen=True)
class BufferViewConfig:
    """What the views show."""

    views: int = 6_000
    """Rendered views."""
    seed: int = 31
    """Seed of objects, cameras and captions."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Their distribution."""


class BufferViewCache(ImageCache):
    """Read access to a finished or growing cache.

    Attributes:
        buffers: ``[n, h, w, 9]`` uint8: grey depth, normals as colours, edges, kind + 1, drawn
            keypoints.
        labels: ``[n, 2]`` int: kind and colour of the first object.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``; only finished views are visible."""
        super().__init__(folder)
        state = json.loads((folder / "state.json").read_text())
        self.labels = np.array(state["labels"], dtype=np.int64)
        self.buffers = np.load(folder / "buffers.npy", mmap_mode="r")[: len(self.images)]


def condition_images(buffers: np.ndarray, name: str) -> Float[Tensor, "b h w 3"]:
    """The condition images in 0..1 of cached buffers ``[b, h, w, 9]``.

    Raises:
        ValueError: ``name`` is none of :data:`CONDITIONS`.
    """
    values = torch.from_numpy(np.array(buffers))  # a memory map is read-only
    if name == "depth":
        return (values[..., DEPTH].float() / 255.0)[..., None].expand(*values.shape[:3], 3)
    if name == "normal":
        return values[..., NORMAL].float() / 255.0
    if name == "edge":
        return line_image(values[..., EDGE] > 0)
    if name == "seg":
        return segmentation_image(values[..., KIND].long(), palette(len(KIND_NAMES)))
    if name == "keypoints":
        return values[..., KEYPOINTS].float() / 255.0
    raise ValueError(f"condition is '{name}' - expected one of {', '.join(CONDITIONS)}.")


def silhouettes(buffers: np.ndarray) -> np.ndarray:
    """Where objects are, ``[b, h, w]`` bool."""
    return buffers[..., KIND] > 0


def render_buffer_views(
    folder: Path, config: BufferViewConfig, *, log: Callable[[str], None]
) -> BufferViewCache:
    """Render the views into ``folder``, continuing where an earlier call stopped.

    Raises:
        ConfigError: ``folder`` holds views of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / "state.json"
    key = _key(config)
    is_new = not state_path.exists()
    state = {"done": 0, "captions": [], "labels": [], "key": key}
    if not is_new:
        state = json.loads(state_path.read_text())
    if state["key"] != key:
        raise ConfigError(
            f"{folder} holds views of other settings. Name another folder, or delete this one."
        )
    images, buffers = _open_arrays(folder, config, is_new=is_new)
    drawn = draw_rows(partial(_drawn, config), range(state["done"], config.views))
    while views := list(islice(drawn, CHUNK)):
        for k, view in enumerate(views, start=state["done"]):
            images[k], buffers[k], label, said = view
            state["labels"].append(label)
            state["captions"].append(said)
        state["done"] += len(views)
        images.flush()
        buffers.flush()
        partial_state = state_path.with_suffix(".tmp")
        partial_state.write_text(json.dumps(state))
        partial_state.replace(state_path)
        log(f"views {state['done']}/{config.views}")
    return BufferViewCache(folder)


def _key(config: BufferViewConfig) -> str:
    """Tells caches of other views, and of other buffers, apart."""
    said = json.dumps([asdict(config), CHANNELS])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _drawn(config: BufferViewConfig, k: int) -> tuple[np.ndarray, np.ndarray, list[int], str]:
    """Image ``[h, w, 3]`` and buffers ``[h, w, 9]`` as bytes, label and caption of view k."""
    rng = np.random.default_rng([config.seed, k])
    scene, said, view = draw_view(ToySampler(config.samples), rng)
    first = scene.objects[0]
    label = [KIND_NAMES.index(first.kind), COLOR_NAMES.index(first.color)]
    return np.round(view.rgb[0] * 255).astype(np.uint8), _packed(scene, view), label, said


def _open_arrays(
    folder: Path, config: BufferViewConfig, *, is_new: bool
) -> tuple[np.ndarray, np.ndarray]:
    size, open_array = config.samples.image_size, np.lib.format.open_memmap
    paths = (folder / "images.npy", folder / "buffers.npy")
    if not is_new:
        return open_array(paths[0], "r+"), open_array(paths[1], "r+")
    shapes = [(config.views, size, size, channels) for channels in (3, CHANNELS)]
    images, buffers = (open_array(p, "w+", np.uint8, s) for p, s in zip(paths, shapes))
    return images, buffers


def draw_view(sampler: ToySampler, rng: np.random.Generator) -> tuple[SceneSpec, str, ToyBuffers]:
    """A scene, what is said of it, and one view with its buffers."""
    config = sampler.config
    scene = sampler.scene(rng)
    camera = random_cameras(
        rng,
        image_size=config.image_size,
        elevation_deg=config.elevation_deg,
        front=len(scene.objects) > 1,
    )
    background = random_background(rng, config.white_background)
    angles = float(camera.azimuth_deg[0]), float(camera.elevation_deg[0])
    told = spoken_view(*angles, rng) if rng.random() < config.caption_view else None
    geometry = ToyGeometry(build_scene(scene))
    return scene, caption(scene, told, rng), render_buffers(geometry, camera, background=background)


def _packed(scene: SceneSpec, view: ToyBuffers) -> np.ndarray:
    """Buffers of the first camera as bytes ``[h, w, 9]``."""
    hit = torch.from_numpy(view.instance > 0).float()
    depth = depth_image(torch.from_numpy(view.depth), hit)[0, ..., :1]
    normal = normal_image(torch.from_numpy(view.normal), hit)[0]
    edges = view.edges[0, ..., None] * 255
    kinds = np.array([0, *(KIND_NAMES.index(o.kind) + 1 for o in scene.objects)])
    shown = keypoint_picture(view.keypoints[0], view.edges.shape[1:])
    drawn = [np.round(image.numpy() * 255) for image in (depth, normal, shown)]
    parts = [*drawn[:2], edges, kinds[view.instance[0]][..., None], drawn[2]]
    return np.concatenate(parts, -1).astype(np.uint8)
